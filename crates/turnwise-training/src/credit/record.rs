use std::collections::BTreeMap;

use serde::Serialize;
use turnwise_environment::Seat;
use turnwise_trajectory::{SampledToken, Trajectory, Turn};

use super::CreditStreams;

/// The credit record of one trained episode, as in a run's files: every named stream, turn by turn.
///
/// All trained tokens of a turn share the turn's number in each stream; `tokens` has the number of tokens.
#[derive(Debug, PartialEq, Serialize)]
pub struct CreditRecord<'a> {
    /// The group's id.
    pub group: u64,
    /// The member's index.
    pub member: u32,
    /// The seat of the trajectory.
    #[serde(skip_serializing_if = "Seat::is_first")]
    pub seat: Seat,
    /// The attempt.
    pub attempt: u32,
    /// For each turn, the number of its tokens that train.
    pub tokens: Vec<usize>,
    /// For each turn, its reward with score and penalty; `None` means not scored.
    pub rewards: Vec<Option<f64>>,
    /// For each stream, one number for each turn; the tokens train with "advantage".
    pub streams: BTreeMap<&'static str, &'a [f64]>,
    /// For each stream, the deviation of the whole group from the stream's invariant; 0 up to rounding.
    pub imbalance: BTreeMap<&'static str, f64>,
}

/// Returns the records of trained episodes. `credit` has the streams of each group, in the order of `trained`.
pub fn credit_records<'a>(
    credit: &'a [CreditStreams],
    trained: &'a [Trajectory],
) -> impl Iterator<Item = CreditRecord<'a>> {
    let mut rest = trained;
    credit.iter().flat_map(move |streams| {
        let (group, later) = rest.split_at(streams.advantage.values.len());
        rest = later;
        let members: Vec<&Trajectory> = group.iter().collect();
        let imbalance: BTreeMap<_, _> = streams
            .all()
            .map(|stream| (stream.name, streams.imbalance(stream, &members)))
            .collect();
        let record = move |(place, member): (usize, &Trajectory)| {
            record(member, place, streams, imbalance.clone())
        };
        group.iter().enumerate().map(record).collect::<Vec<_>>()
    })
}

fn record<'a>(
    member: &Trajectory,
    place: usize,
    streams: &'a CreditStreams,
    imbalance: BTreeMap<&'static str, f64>,
) -> CreditRecord<'a> {
    let trained =
        |turn: &Turn| member.graph.node(turn.node).sampled().filter(SampledToken::trains).count();
    CreditRecord {
        group: member.identity.group.0,
        member: member.identity.member,
        seat: member.seat,
        attempt: member.identity.attempt,
        tokens: member.turns.iter().map(trained).collect(),
        rewards: member.turns.iter().map(Turn::total_reward).collect(),
        streams: streams.all().map(|stream| (stream.name, &*stream.values[place])).collect(),
        imbalance,
    }
}
