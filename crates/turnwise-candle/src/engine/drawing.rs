//! Sampling from the logits of a step.

use std::sync::Mutex;

use turnwise_kernels::team::Team;
use turnwise_rollout::Sampler;

use super::compute::Logits;
use super::slot::{Drawn, Slot, Undrawn};
use crate::finite::all_finite;

/// The rows that one thread samples from at a time.
const ROWS: usize = 4;

/// A token to sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct SamplePlace {
    /// The index of the request.
    pub(super) slot: usize,
    /// The number of drafts before it.
    pub(super) ahead: usize,
}

/// Samples tokens at places, in order.
pub(super) fn draw_all(
    team: &mut Team,
    logits: Logits<'_>,
    vocab_size: usize,
    places: &[SamplePlace],
    slots: &[Slot],
) -> Vec<Result<Drawn, Undrawn>> {
    let mut drawn = vec![Err(Undrawn::NotFinite); places.len()];
    let samplers: Vec<Mutex<Sampler>> = (0..team.size()).map(|_| Mutex::default()).collect();
    team.chunks(&mut drawn, ROWS, |member, chunk, drawn| {
        let mut sampler = samplers[member].try_lock().expect("a member does one piece at a time");
        for (offset, drawn) in drawn.iter_mut().enumerate() {
            let row = chunk * ROWS + offset;
            let logits = &logits.data[row * logits.stride..][..vocab_size];
            let SamplePlace { slot, ahead } = places[row];
            *drawn = draw(&mut sampler, logits, &slots[slot], ahead);
        }
    });
    drawn
}

fn draw(
    sampler: &mut Sampler,
    logits: &[f32],
    slot: &Slot,
    ahead: usize,
) -> Result<Drawn, Undrawn> {
    if !all_finite(logits) {
        return Err(Undrawn::NotFinite);
    }
    let (sampling, uniform) = (&slot.request().sampling, slot.uniform(ahead));
    let drawn = match slot.allowed() {
        None => Some(sampler.draw(logits, sampling, uniform)),
        Some(allowed) => sampler.draw_from(logits, &allowed, sampling, uniform),
    };
    let (id, logprob) = drawn.ok_or(Undrawn::NothingAllowed)?;
    Ok(Drawn { id, logprob, kept: sampler.support().to_vec() })
}
