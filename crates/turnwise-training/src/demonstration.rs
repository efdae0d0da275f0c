//! Supervised warm start: the learner imitates demonstrations, with the gradient of a log-likelihood.

use turnwise_environment::{
    Demonstrator, EnvironmentError, Message, Observation, Step, TaskSet, ToolSpec, derive_seed,
};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason, TokenId};

use crate::{Learner, LearnerError, Row, Target, Update, Updated};

/// One episode of a demonstrator, laid out for a learner. The demonstrator's actions are the targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Demonstration {
    /// The conversation.
    pub row: Row,
    /// The demonstrator's reward.
    pub reward: f64,
    /// Whether the demonstrator solved the task.
    pub solved: bool,
    /// Whether the environment ended the episode; otherwise the episode was cut off after `max_turns` turns.
    pub is_over: bool,
}

/// Plays one task with a demonstrator, for at most `max_turns` turns.
///
/// # Errors
/// If the environment breaks, or the conversation cannot be rendered.
pub async fn demonstrate(
    tasks: &dyn TaskSet,
    index: usize,
    mut demonstrator: Box<dyn Demonstrator>,
    renderer: &dyn Renderer,
    max_turns: usize,
    seed: u64,
) -> Result<Demonstration, DemonstrationError> {
    let mut environment = tasks.environment(index);
    let mut observation = environment.reset(derive_seed(seed, 0)).await?;
    let mut row = Row::default();
    append(&mut row, renderer.open(&observation, &environment.tools())?);
    let mut history: Vec<(Message, Option<Vec<TokenId>>)> = Vec::new();
    let mut reward = 0.0;
    for _ in 0..max_turns {
        let action = demonstrator.act(&observation);
        let drawn = renderer.write(&action);
        imitate(&mut row, drawn.clone());
        history.extend(observation.messages.drain(..).map(|message| (message, None)));
        history.push((action.to_message(), Some(drawn)));
        let step = environment.step(action).await?;
        let (Step::Next { reward: turn_reward, .. } | Step::End { reward: turn_reward, .. }) =
            &step;
        reward += turn_reward.unwrap_or(0.0);
        match step {
            Step::End { solved, .. } => {
                return Ok(Demonstration { row, reward, solved, is_over: true });
            }
            Step::Next { observation: next, .. } => {
                let tools = environment.tools();
                observation = go_on(&mut row, renderer, &history, next, &tools)?;
            }
        }
    }
    Ok(Demonstration { row, reward, solved: false, is_over: false })
}

fn go_on(
    row: &mut Row,
    renderer: &dyn Renderer,
    history: &[(Message, Option<Vec<TokenId>>)],
    next: Observation,
    tools: &[ToolSpec],
) -> Result<Observation, RenderError> {
    let ids = history.last().and_then(|(_, drawn)| drawn.as_deref()).unwrap_or_default();
    let ended = EndedTurn { ids, stop: StopReason::EndOfTurn };
    let said = history.iter().map(|(message, drawn)| Said { message, drawn: drawn.as_deref() });
    let said: Vec<Said<'_>> = said.collect();
    let Bridged::Append(more) = renderer.go_on(ended, &said, &next.messages, tools)? else {
        let message = "its template rewrites history, and a demonstration is one row";
        return Err(RenderError(message.to_owned()));
    };
    append(row, more);
    Ok(next)
}

fn append(row: &mut Row, rendered: Rendered) {
    row.ids.extend(rendered.close);
    rendered.messages.iter().flatten().for_each(|span: &Span| span.extend_ids(&mut row.ids));
    row.ids.extend(rendered.generation);
    row.ids.extend(rendered.prefill);
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
    #[error("play a demonstration")]
    Environment(#[from] EnvironmentError),
    /// The conversation cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
}
