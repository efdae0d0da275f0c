//! Drawing from the logits of a step.

use std::sync::Mutex;

use turnwise_rollout::Sampler;

use super::compute::Logits;
use super::slot::{Drawn, Slot};
use super::team::Team;
use crate::math;
use crate::simd::vectorized;

/// Rows that one thread draws from at a time.
const ROWS: usize = 4;

/// What is drawn for the requests that are ready, in their order; `None` where nothing can be.
pub(super) fn draw_all(
    team: &mut Team,
    logits: Logits<'_>,
    vocab_size: usize,
    ready: &[usize],
    slots: &[Slot],
) -> Vec<Option<Drawn>> {
    let mut drawn = vec![None; ready.len()];
    let samplers: Vec<Mutex<Sampler>> = (0..team.size()).map(|_| Mutex::default()).collect();
    let ready: Vec<&Slot> = ready.iter().map(|index| &slots[*index]).collect();
    team.chunks(&mut drawn, ROWS, |member, chunk, drawn| {
        let mut sampler = samplers[member].try_lock().expect("a member does one piece at a time");
        for (offset, drawn) in drawn.iter_mut().enumerate() {
            let row = chunk * ROWS + offset;
            let logits = &logits.data[row * logits.stride..][..vocab_size];
            *drawn = draw(&mut sampler, logits, ready[row]);
        }
    });
    drawn
}

/// `None` when the logits are not numbers, or nothing is allowed.
fn draw(sampler: &mut Sampler, logits: &[f32], slot: &Slot) -> Option<Drawn> {
    if !are_finite(logits) {
        return None;
    }
    let (sampling, uniform) = (&slot.request().sampling, slot.uniform());
    let Some(mut kept) = slot.allowed() else {
        let (id, logprob) = sampler.draw(logits, sampling, uniform);
        return Some(Drawn { id, logprob, kept: Vec::new() });
    };
    let (id, logprob) = sampler.draw_from(logits, &mut kept, sampling, uniform)?;
    Some(Drawn { id, logprob, kept })
}

vectorized! {
    /// Whether all of them are numbers: what is none is not 0 when it is multiplied by 0.
    fn are_finite(x: &[f32]) -> bool {
        math::sum_of(x, |x| x * 0.0) == 0.0
    }
}
