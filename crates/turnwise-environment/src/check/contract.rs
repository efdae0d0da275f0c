use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Check;
use super::episode::{ObservedEpisode, ObservedTurn, Subject};
use super::hostile::hostile_actions;
use super::isolation::{SHARED, isolated};
use super::recovery::recovers;
use super::snapshot::{continues, refuses};
use crate::{Action, CallAttempt, Observation, Recovery, Role, Seat, Step};

const PLAYS: &str = "reset/step with 64 seeds";
const REPEATS: &str = "same seed, same transcript";
const ISOLATED: &str = "episodes side by side leave each other alone";
const REWARDS: &str = "rewards finite and in range";
const SURVIVES: &str = "survives hostile actions";
const SPEAKS: &str = "observations are not empty and not the agent's";
const ANSWERS: &str = "answers tool calls in order";
const TOOLS: &str = "tools stay the same";
const ENDS: &str = "ends within its turns";
const CONTINUES: &str = "snapshot/restore continues identically";
const RECOVERS: &str = "goes on as it declares";
const REFUSES: &str = "refuses what is no snapshot";

/// The number of seeds of a subject that are played a second time, disturbed or snapshotted.
const N_REPEATED: usize = 4;

/// The findings so far on the environments of one contract.
#[derive(Default)]
pub(super) struct Contract {
    /// The first finding of each check that failed.
    wrong: BTreeMap<&'static str, String>,
    n_episodes: usize,
    n_hostile: usize,
    n_snapshots: usize,
    recovery: Option<Recovery>,
    n_calls: usize,
    turns_max: usize,
    observation_chars_max: usize,
    reward_min: Option<f64>,
    reward_max: Option<f64>,
    tool_names: BTreeSet<String>,
}

impl Contract {
    /// Plays a subject with these seeds and keeps the findings.
    pub(super) async fn examine(&mut self, subject: &Subject<'_>, seeds: Range<u64>) {
        let mut kept = Vec::new();
        for seed in seeds {
            match subject.played(seed).await {
                Ok(episode) => {
                    self.inspect(subject, &episode);
                    self.count(&episode);
                    if kept.len() < N_REPEATED {
                        kept.push((seed, episode));
                    }
                }
                Err(why) => self.report(subject, PLAYS, Err(format!("seed {seed}: {why}"))),
            }
        }
        for (seed, episode) in &kept {
            match repeats(subject, *seed, episode).await {
                Ok(()) => self.report(subject, ISOLATED, isolated(subject, *seed, episode).await),
                Err(why) => self.report(subject, REPEATS, Err(format!("{why}. {SHARED}"))),
            }
            self.snapshots(subject, *seed, episode).await;
        }
        if let Some((seed, episode)) = kept.first() {
            self.disturb(subject, *seed, episode).await;
        }
    }

    /// Returns every check, with what was observed if nothing is wrong.
    pub(super) fn into_checks(mut self) -> Vec<Check> {
        let details = self.details();
        details
            .into_iter()
            .map(|(name, detail)| {
                let result = match self.wrong.remove(name) {
                    Some(why) => Err(why),
                    // A check that saw no episode must not pass.
                    None if self.n_episodes == 0 => Err("no episode could be played".to_owned()),
                    None => Ok(detail),
                };
                Check { name, result }
            })
            .collect()
    }

    fn details(&self) -> [(&'static str, String); 12] {
        let range = match (self.reward_min, self.reward_max) {
            (Some(min), Some(max)) => format!("sums from {min:.3} to {max:.3}"),
            _ => "no turn was scored".to_owned(),
        };
        let snapshots = match self.n_snapshots {
            0 => "takes no snapshots".to_owned(),
            n => format!("{n} snapshots"),
        };
        let recovery = match self.recovery {
            Some(Recovery::Snapshot) => "from snapshots",
            Some(Recovery::Replay) => "by replay",
            Some(Recovery::Restart) => "not, it starts anew",
            None => "nobody asked",
        };
        let names: Vec<&str> = self.tool_names.iter().map(String::as_str).collect();
        let tools = if names.is_empty() { "no tools".to_owned() } else { names.join(", ") };
        let longest = format!("the longest has {} characters", self.observation_chars_max);
        [
            (PLAYS, format!("{} episodes", self.n_episodes)),
            (REPEATS, "equal observations and rewards".to_owned()),
            (ISOLATED, "one played inside another".to_owned()),
            (REWARDS, range),
            (SURVIVES, format!("{} hostile episodes", self.n_hostile)),
            (SPEAKS, longest),
            (ANSWERS, format!("{} calls", self.n_calls)),
            (TOOLS, tools),
            (ENDS, format!("{} turns at most", self.turns_max)),
            (CONTINUES, snapshots),
            (RECOVERS, recovery.to_owned()),
            (REFUSES, "with an error".to_owned()),
        ]
    }

    /// Keeps the first finding of a check.
    fn report(&mut self, subject: &Subject<'_>, check: &'static str, result: Result<(), String>) {
        if let Err(why) = result {
            let place = if subject.label.is_empty() { "" } else { ": " };
            let text = format!("{}{place}{why}", subject.label);
            self.wrong.entry(check).or_insert(text);
        }
    }

    /// Runs the checks that need nothing but the recorded episode.
    fn inspect(&mut self, subject: &Subject<'_>, episode: &ObservedEpisode) {
        self.report(subject, REWARDS, sum_of_rewards(episode));
        self.report(subject, SPEAKS, episode.observations().try_for_each(speaks));
        self.report(subject, SPEAKS, addresses_seats(episode));
        self.report(subject, ENDS, ends(subject, episode));
        self.report(subject, TOOLS, same_tools(episode));
        // With several seats, a call may be answered when its seat is addressed again.
        if !episode.tools.is_empty() && episode.n_seats == 1 {
            self.report(subject, ANSWERS, episode.turns.iter().try_for_each(answers));
        }
    }

    /// Counts an episode of the subject's own player in the details.
    fn count(&mut self, episode: &ObservedEpisode) {
        self.n_episodes += 1;
        self.n_calls += episode.actions().map(|action| action.calls.len()).sum::<usize>();
        self.turns_max = self.turns_max.max(episode.turns.len());
        let longest = episode.observations().map(n_chars).max();
        self.observation_chars_max = self.observation_chars_max.max(longest.unwrap_or(0));
        self.tool_names.extend(episode.tools.iter().map(|tool| tool.name.clone()));
        if let Some(sum) =
            episode.rewards(Seat::default()).into_iter().reduce(|sum, reward| sum + reward)
        {
            self.reward_min = Some(self.reward_min.map_or(sum, |min| min.min(sum)));
            self.reward_max = Some(self.reward_max.map_or(sum, |max| max.max(sum)));
        }
    }

    async fn snapshots(&mut self, subject: &Subject<'_>, seed: u64, episode: &ObservedEpisode) {
        let snapshots = continues(subject, seed, episode).await.unwrap_or_else(|why| {
            self.report(subject, CONTINUES, Err(format!("seed {seed}: {why}")));
            Vec::new()
        });
        self.n_snapshots += snapshots.len();
        self.report(subject, REFUSES, refuses(subject, &snapshots).await);
        match recovers(subject, seed, episode).await {
            Ok(recovery) => self.recovery = Some(recovery),
            Err(why) => self.report(subject, RECOVERS, Err(format!("seed {seed}: {why}"))),
        }
    }

    /// Plays hostile actions from the first turn on, and from the middle of a good episode on.
    async fn disturb(&mut self, subject: &Subject<'_>, seed: u64, good: &ObservedEpisode) {
        for (what, hostile) in hostile_actions(&good.tools) {
            for n_good in [0, good.turns.len() / 2] {
                let played = disturbed(subject, seed, good, n_good, &hostile).await;
                match played {
                    Ok(episode) => {
                        self.n_hostile += 1;
                        self.inspect(subject, &episode);
                    }
                    Err(why) => self.report(subject, SURVIVES, Err(format!("{what}: {why}"))),
                }
            }
        }
    }
}

/// Plays the first good actions of an episode, then repeats one hostile action until the end.
async fn disturbed(
    subject: &Subject<'_>,
    seed: u64,
    good: &ObservedEpisode,
    n_good: usize,
    hostile: &Action,
) -> Result<ObservedEpisode, String> {
    let mut act = |turn: usize, _shown: &Observation| match good.turns.get(turn) {
        Some(turn_of_good) if turn < n_good => turn_of_good.action.clone(),
        _ => hostile.clone(),
    };
    subject.play(seed, &mut act).await
}

/// Checks that playing a seed again gives an equal episode.
async fn repeats(subject: &Subject<'_>, seed: u64, before: &ObservedEpisode) -> Result<(), String> {
    let again = subject.played(seed).await?;
    if again.tools != before.tools {
        return Err(format!("seed {seed}: the tools differ"));
    }
    if again.first != before.first {
        return Err(format!("seed {seed}: the first observations differ"));
    }
    let differs = |turn: &usize| again.turns.get(*turn) != before.turns.get(*turn);
    match (0..again.turns.len().max(before.turns.len())).find(differs) {
        Some(turn) => Err(format!("seed {seed}: the transcripts differ at turn {}", turn + 1)),
        None => Ok(()),
    }
}

/// Checks that each reward is finite and that their sum lies in the environment's range.
fn sum_of_rewards(episode: &ObservedEpisode) -> Result<(), String> {
    for seat in (0..episode.n_seats as u32).map(Seat) {
        let rewards = episode.rewards(seat);
        if let Some(reward) = rewards.iter().find(|reward| !reward.is_finite()) {
            return Err(format!("a turn has the reward {reward}"));
        }
        let sum: f64 = rewards.iter().sum();
        let range = &episode.reward_range;
        if !range.contains(&sum) {
            let whose =
                if episode.n_seats > 1 { format!(" of seat {seat}") } else { String::new() };
            return Err(format!("an episode's rewards{whose} sum to {sum}, outside {range:?}"));
        }
    }
    Ok(())
}

/// Checks that observations and rewards are addressed to seats that the environment has.
fn addresses_seats(episode: &ObservedEpisode) -> Result<(), String> {
    let observed = episode.observations().map(|observation| observation.seat);
    let rewarded = episode.turns.iter().flat_map(|turn| match &turn.step {
        Step::Next { others, .. } | Step::End { others, .. } => others.iter().map(|it| it.seat),
    });
    let n_seats = episode.n_seats;
    match observed.chain(rewarded).find(|seat| seat.0 as usize >= n_seats) {
        Some(seat) => Err(format!("seat {seat} is addressed, and n_seats is {n_seats}")),
        None => Ok(()),
    }
}

fn same_tools(episode: &ObservedEpisode) -> Result<(), String> {
    if episode.tools == episode.tools_at_end {
        Ok(())
    } else {
        Err("the tools changed within an episode".to_owned())
    }
}

fn speaks(observation: &Observation) -> Result<(), String> {
    if observation.messages.is_empty() {
        return Err("an observation has no message".to_owned());
    }
    if observation.messages.iter().any(|message| message.role == Role::Assistant) {
        return Err("an observation has a message of the agent's own role".to_owned());
    }
    Ok(())
}

/// Checks that each call of an action that did not end the episode has its answer, in call order.
fn answers(turn: &ObservedTurn) -> Result<(), String> {
    let Step::Next { observation, .. } = &turn.step else { return Ok(()) };
    let called = turn.action.calls.iter().map(|attempt| match attempt {
        CallAttempt::Call(call) => call.id.as_str(),
        CallAttempt::Malformed(call) => call.id.as_str(),
    });
    let results = observation.messages.iter().filter(|message| message.role == Role::Tool);
    let answered = results.map(|message| message.tool_call_id.as_deref().unwrap_or_default());
    if called.eq(answered) {
        Ok(())
    } else {
        Err("the tool messages do not answer the calls one by one".to_owned())
    }
}

fn ends(subject: &Subject<'_>, episode: &ObservedEpisode) -> Result<(), String> {
    match subject.max_turns {
        Some(limit) if !episode.ended() => Err(format!("not over after {limit} turns")),
        _ => Ok(()),
    }
}

fn n_chars(observation: &Observation) -> usize {
    observation.messages.iter().map(|message| message.content.chars().count()).sum()
}
