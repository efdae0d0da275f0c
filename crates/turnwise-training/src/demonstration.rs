//! Supervised warm start: the learner imitates demonstrations, with the gradient of a log-likelihood.

use std::collections::BTreeMap;

use turnwise_environment::{
    Action, Demonstrator, EnvironmentError, Message, Observation, Seat, Step, TaskSet, ToolSpec,
    derive_seed,
};
use turnwise_rollout::{Bridged, EndedTurn, Preface, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId};

use crate::{Learner, LearnerError, Row, Target, Update, Updated};

/// One episode of demonstrators, laid out for a learner. The demonstrators' actions are the targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Demonstration {
    /// The conversation of each seat that acted, in the order of the seats.
    pub rows: Vec<Row>,
    /// The reward of the first seat.
    pub reward: f64,
    /// Whether the first seat solved the task.
    pub solved: bool,
    /// Whether the environment ended the episode; otherwise the episode was cut off after `max_turns` turns.
    pub is_over: bool,
}

/// The conversations of demonstrations that fit into a context, and what is known of those that do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fitting {
    /// The rows that fit, in the order of the demonstrations.
    pub rows: Vec<Row>,
    /// The number of rows that are longer.
    pub n_longer: usize,
    /// The number of tokens of the shortest row that is longer; 0 if all fit.
    pub shortest_longer: usize,
}

impl Fitting {
    /// Takes the rows of at most `max_context_tokens` tokens: an episode of a policy ends there, and a model may have no
    /// more positions. A demonstration that is cut off would teach to stop in the middle.
    #[must_use]
    pub fn new(demonstrations: Vec<Demonstration>, max_context_tokens: usize) -> Self {
        let (mut rows, mut longer) = (Vec::new(), Vec::new());
        for row in demonstrations.into_iter().flat_map(|episode| episode.rows) {
            if row.ids.len() <= max_context_tokens {
                rows.push(row);
            } else {
                longer.push(row.ids.len());
            }
        }
        let shortest_longer = longer.iter().copied().min().unwrap_or(0);
        Self { rows, n_longer: longer.len(), shortest_longer }
    }
}

/// Plays one task with a demonstrator on each seat, for at most `max_turns` turns of all seats. `preface` precedes the
/// conversation of each seat.
///
/// # Errors
/// If the environment breaks, or the conversation cannot be rendered.
pub async fn demonstrate(
    tasks: &dyn TaskSet,
    index: usize,
    player: &(dyn Fn(Seat) -> Box<dyn Demonstrator> + Sync),
    renderer: &dyn Renderer,
    preface: &Preface,
    max_turns: usize,
    seed: u64,
) -> Result<Demonstration, DemonstrationError> {
    let mut environment = tasks.environment(index);
    let mut observation = environment.reset(derive_seed(seed, 0)).await?;
    let tools = environment.tools();
    let mut seats: BTreeMap<Seat, Conversation> = BTreeMap::new();
    let (mut reward, mut solved, mut is_over) = (0.0, false, false);
    for _ in 0..max_turns {
        let seat = observation.seat;
        let conversation = seats.entry(seat).or_insert_with(|| Conversation::new(player(seat)));
        let heard = std::mem::take(&mut observation);
        let action = conversation.turn(&heard, preface, renderer, &tools)?;
        let step = environment.step(action).await?;
        let (Step::Next { reward: of_turn, others, late, .. }
        | Step::End { reward: of_turn, others, late, .. }) = &step;
        let other = others.iter().find(|other| other.seat.is_first());
        reward += of_turn.filter(|_| seat.is_first()).unwrap_or(0.0);
        reward += other.map_or(0.0, |other| other.reward);
        let late = late.iter().map(|late| late.reward).sum::<f64>();
        reward += if seat.is_first() { late } else { 0.0 };
        match step {
            Step::Next { observation: next, .. } => observation = next,
            Step::End { solved: of_seat, .. } => {
                is_over = true;
                let solved_other = other.is_some_and(|other| other.solved);
                solved = if seat.is_first() { of_seat } else { solved_other };
                break;
            }
        }
    }
    // What an episode that was cut off says last is part of its text.
    if !is_over && let Some(conversation) = seats.get_mut(&observation.seat) {
        conversation.observe(&observation, renderer, &tools)?;
    }
    let rows = seats.into_values().map(|conversation| conversation.row).collect();
    Ok(Demonstration { rows, reward, solved, is_over })
}

/// The conversation of one seat.
struct Conversation {
    player: Box<dyn Demonstrator>,
    row: Row,
    /// The messages, each with its tokens if the player wrote it, forced ones included.
    history: Vec<(Message, Option<Vec<TokenId>>)>,
    /// The forced tokens at the beginning of the next turn.
    prefill: Vec<TokenId>,
}

impl Conversation {
    fn new(player: Box<dyn Demonstrator>) -> Self {
        Self { player, row: Row::default(), history: Vec::new(), prefill: Vec::new() }
    }

    /// Appends an observation and the player's answer, which is returned.
    fn turn(
        &mut self,
        observation: &Observation,
        preface: &Preface,
        renderer: &dyn Renderer,
        tools: &[ToolSpec],
    ) -> Result<Action, RenderError> {
        let told =
            if self.history.is_empty() { preface.before(observation) } else { observation.clone() };
        self.observe(&told, renderer, tools)?;
        let action = self.player.act(observation);
        let mut turn = std::mem::take(&mut self.prefill);
        let written = renderer.write_after(&turn, &action);
        turn.extend_from_slice(&written);
        imitate(&mut self.row, written);
        self.history.extend(told.messages.into_iter().map(|message| (message, None)));
        self.history.push((action.to_message(), Some(turn)));
        Ok(action)
    }

    /// Appends an observation.
    fn observe(
        &mut self,
        next: &Observation,
        renderer: &dyn Renderer,
        tools: &[ToolSpec],
    ) -> Result<(), RenderError> {
        if self.history.is_empty() {
            self.append(renderer.open(next, tools)?);
            return Ok(());
        }
        let ids = self.history.last().and_then(|(_, written)| written.as_deref());
        let ended = EndedTurn { ids: ids.unwrap_or_default(), stop: StopReason::EndOfTurn };
        let said = self.history.iter();
        let said = said.map(|(message, drawn)| Said { message, drawn: drawn.as_deref() });
        let said: Vec<Said<'_>> = said.collect();
        let Bridged::Append(more) = renderer.go_on(ended, &said, &next.messages, tools)? else {
            let message = "its template rewrites history, and a demonstration is one row";
            return Err(RenderError(message.to_owned()));
        };
        self.append(more);
        Ok(())
    }

    fn append(&mut self, rendered: Rendered) {
        let ids = &mut self.row.ids;
        ids.extend(rendered.close);
        rendered.messages.iter().flatten().for_each(|span: &Span| span.extend_ids(ids));
        ids.extend(rendered.generation);
        ids.extend_from_slice(&rendered.prefill);
        self.prefill = rendered.prefill;
    }
}

fn imitate(row: &mut Row, ids: Vec<TokenId>) {
    let first = row.ids.len();
    row.targets
        .extend((0..ids.len()).map(|offset| Target { position: first + offset, temperature: 1.0 }));
    row.ids.extend(ids);
}

/// Takes one supervised step on the mean over rows of the mean negative log-likelihood of each row's targets.
///
/// Returns the loss, in nats, and the optimiser's report. Publishes nothing.
///
/// # Errors
/// If the learner fails, and [`LearnerError::NotFinite`] if the gradient is NaN or infinite.
pub async fn imitate_step(
    learner: &mut dyn Learner,
    rows: &[Row],
    update: Update,
) -> Result<(f64, Updated), LearnerError> {
    let weights: Vec<f32> =
        rows.iter().map(|row| 1.0 / (row.targets.len() as f32 * rows.len() as f32)).collect();
    let mut loss = 0.0;
    let mut gradient = |logprobs: &[Vec<f32>]| {
        for (row, weight) in logprobs.iter().zip(&weights) {
            loss -= row.iter().map(|logprob| f64::from(*logprob)).sum::<f64>() * f64::from(*weight);
        }
        Ok(logprobs.iter().zip(&weights).map(|(row, weight)| vec![-weight; row.len()]).collect())
    };
    learner.accumulate(rows, &mut gradient).await?;
    let updated = learner.step(update).await?;
    if !updated.applied {
        return Err(LearnerError::NotFinite {
            action: "imitate demonstrations".to_owned(),
            reason: match updated.not_finite {
                Some(name) => format!("the gradient of {name} is not finite"),
                None => format!("the gradient's norm is {}", updated.grad_norm),
            },
        });
    }
    Ok((loss, updated))
}

/// The reason why a demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum DemonstrationError {
    /// The environment broke.
    #[error("cannot play a demonstration")]
    Environment(#[from] EnvironmentError),
    /// The conversation cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
}
