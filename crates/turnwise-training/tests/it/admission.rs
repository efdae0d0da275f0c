//! What is dropped or masked before training, why, and what that does to the others.

use proptest::prelude::*;
use turnwise_rollout::Group;
use turnwise_training::{
    Admission, Admitted, Credit, DropReason, Lengths, Overlong, StaleTokens, TruncatedEpisodes,
    assign_credit,
};
use turnwise_trajectory::{
    AgentFault, CancelReason, GroupId, InfraFault, InfraReason, Limit, MaskReason, Outcome,
    PolicyVersion, SampledToken, Trajectory,
};

use crate::support::{Built, OUTCOME, ended};

fn admit(admission: Admission, members: Vec<Trajectory>, newest: u32) -> Admitted {
    admission.admit(Group { id: GroupId(0), members }, PolicyVersion(newest))
}

/// An episode of one turn whose tokens were drawn by these versions.
fn drawn_by(member: u32, versions: &[u32], reward: f64) -> Trajectory {
    let token = |version: &u32| SampledToken::new(1, -0.5, PolicyVersion(*version));
    Built::new(member).turn(versions.iter().map(token).collect(), reward).trajectory
}

fn rewards(admitted: &Admitted) -> Vec<f64> {
    admitted.members.iter().filter_map(Trajectory::reward).collect()
}

fn masks(member: &Trajectory) -> Vec<Option<MaskReason>> {
    member.sampled().map(|token| token.mask).collect()
}

fn n_dropped(admitted: &Admitted, reason: DropReason) -> u64 {
    admitted.dropped.get(&reason).map_or(0, |lengths| lengths.episodes)
}

proptest! {
    // Rollouts 13.8: what broke leaves the others' advantages as if it had never been started.
    #[test]
    fn members_that_broke_change_nobodys_advantage(
        scored in prop::collection::vec(0_u8..4, 2..6),
        broken in prop::collection::vec((0_usize..6, any::<bool>(), -1e3_f64..1e3), 1..4),
    ) {
        let alone: Vec<Trajectory> = scored
            .iter()
            .enumerate()
            .map(|(member, reward)| ended(member as u32, f64::from(*reward), Outcome::Done))
            .collect();
        let mut with = alone.clone();
        for (place, is_infra, reward) in broken {
            let fault = InfraFault { reason: InfraReason::EnvError, message: String::new() };
            let outcome =
                if is_infra { Outcome::InfraFault(fault) } else { Outcome::Cancelled(CancelReason::Stale) };
            with.insert(place.min(with.len()), ended(99, reward, outcome));
        }
        let credited = |members| {
            let mut admitted = admit(Admission::default(), members, 0);
            assign_credit(&OUTCOME, &mut admitted.members).expect("finite rewards");
            (admitted.members, admitted.dropped)
        };
        prop_assert_eq!(credited(alone), credited(with));
    }

    // Below its minimum a group is dropped whole, whatever took its members.
    #[test]
    fn the_minimum_of_a_group_is_applied_after_what_was_dropped(
        members in prop::collection::vec((0_u32..4, 0_u8..3, any::<bool>()), 0..7),
        min_group_size in 1_usize..5,
    ) {
        let build = |(place, (version, reward, is_truncated)): (usize, &(u32, u8, bool))| {
            let one = drawn_by(place as u32, &[*version], f64::from(*reward));
            let outcome =
                if *is_truncated { Outcome::Truncated(Limit::Turns) } else { Outcome::Done };
            Trajectory { outcome, ..one }
        };
        let members: Vec<Trajectory> = members.iter().enumerate().map(build).collect();
        let admission = Admission {
            max_staleness: 1,
            truncated: TruncatedEpisodes::Mask,
            min_group_size,
            keep_zero_variance: true,
            ..Admission::default()
        };
        let viable = members
            .iter()
            .filter(|one| one.outcome == Outcome::Done && one.staleness(PolicyVersion(3)) <= 1)
            .count();
        let n = members.len();
        let admitted = admit(admission, members, 3);
        let kept = if viable < min_group_size { 0 } else { viable };
        prop_assert_eq!(admitted.members.len(), kept);
        prop_assert_eq!(n_dropped(&admitted, DropReason::GroupDropped), (viable - kept) as u64);
        let all: u64 = admitted.dropped.values().map(|lengths| lengths.episodes).sum();
        prop_assert_eq!(all as usize + kept, n);
    }

    // Rollouts 13.23: equal outcomes are equal, whatever a penalty would make of them, and their credit is exactly 0.
    #[test]
    fn a_penalty_never_makes_a_difference_where_outcomes_are_equal(
        reward in -5.0_f64..5.0,
        members in prop::collection::vec((1_usize..30, any::<bool>(), any::<bool>()), 2..6),
        keep_zero_variance in any::<bool>(),
        penalty in -2.0_f64..-0.1,
    ) {
        let build = |(place, (n, is_truncated, solved)): (usize, &(usize, bool, bool))| {
            let outcome =
                if *is_truncated { Outcome::Truncated(Limit::Turns) } else { Outcome::Done };
            let one = drawn_by(place as u32, &vec![0; *n], reward);
            Trajectory { outcome, solved: *solved, ..one }
        };
        let group: Vec<Trajectory> = members.iter().enumerate().map(build).collect();
        let admission = Admission {
            truncated: TruncatedEpisodes::Penalise(penalty),
            overlong: Some(Overlong { max_tokens: 20, buffer: 10 }),
            keep_zero_variance,
            ..Admission::default()
        };
        let n = group.len();
        let n_solved = group.iter().filter(|one| one.solved).count();
        let mut admitted = admit(admission, group, 0);
        if keep_zero_variance {
            prop_assert_eq!(rewards(&admitted), vec![reward; n]);
            assign_credit(&OUTCOME, &mut admitted.members).expect("finite rewards");
            let mut tokens = admitted.members.iter().flat_map(Trajectory::sampled);
            prop_assert!(tokens.all(|token| token.advantage == Some(0.0)));
        } else {
            let reason = match n_solved {
                0 => DropReason::NoneSolved,
                solved if solved == n => DropReason::AllSolved,
                _ => DropReason::SameReward,
            };
            prop_assert_eq!(n_dropped(&admitted, reason), n as u64);
            prop_assert!(admitted.members.is_empty());
        }
    }

    // Overlong shaping (DAPO): 0 while short, then evenly down to −1, never beyond and never up.
    #[test]
    fn the_penalty_for_length_falls_evenly(
        max_tokens in 1_usize..200,
        buffer in 0_usize..250,
        n in 0_usize..400,
    ) {
        let overlong = Overlong { max_tokens, buffer };
        let penalty = overlong.penalty(n);
        prop_assert!((-1.0..=0.0).contains(&penalty));
        prop_assert!(overlong.penalty(n + 1) <= penalty);
        let free = max_tokens.saturating_sub(buffer);
        prop_assert_eq!(penalty == 0.0, n <= free);
        prop_assert_eq!(penalty == -1.0, n > free && n >= max_tokens);
        if buffer <= max_tokens && n > free && n < max_tokens {
            let expected = (max_tokens as f64 - buffer as f64 - n as f64) / buffer as f64;
            prop_assert!((penalty - expected).abs() < 1e-12);
        }
    }

    // Rollouts 13.21: dropped or masked as set, counted, with lengths that show what dropping favours.
    #[test]
    fn what_is_too_old_is_dropped_or_masked_and_counted(
        members in prop::collection::vec(prop::collection::vec(0_u32..6, 1..9), 1..6),
        max_staleness in 0_u32..4,
    ) {
        let build = |(place, versions): (usize, &Vec<u32>)| drawn_by(place as u32, versions, place as f64);
        let group: Vec<Trajectory> = members.iter().enumerate().map(build).collect();
        let is_old = |version: &u32| 6 - version > max_staleness;
        let of = |stale| {
            let admission =
                Admission { max_staleness, stale, min_group_size: 1, keep_zero_variance: true, ..Admission::default() };
            admit(admission, group.clone(), 6)
        };
        let dropped = of(StaleTokens::Drop);
        let (old, fresh): (Vec<_>, Vec<_>) = members.iter().partition(|one| one.iter().any(is_old));
        let lengths = |of: &[&Vec<u32>]| Lengths {
            episodes: of.len() as u64,
            tokens: of.iter().map(|one| one.len() as u64).sum(),
        };
        prop_assert_eq!(dropped.kept(), lengths(&fresh));
        let counted = dropped.dropped.get(&DropReason::Stale).copied().unwrap_or_default();
        prop_assert_eq!(counted, lengths(&old));
        let masked = of(StaleTokens::Mask);
        prop_assert_eq!(masked.members.len(), members.len());
        for (member, versions) in masked.members.iter().zip(&members) {
            let expected: Vec<_> =
                versions.iter().map(|one| is_old(one).then_some(MaskReason::Stale)).collect();
            prop_assert_eq!(masks(member), expected);
        }
    }
}

// Rollouts 13.8: every way in which so many of a group can break is as likely as any other, and over all of them the mean
// of those that are left is the mean of the group. Zeros in their place would move it.
#[test]
fn breakage_that_does_not_look_at_rewards_does_not_move_their_mean() {
    let group: Vec<f64> = vec![0.0, 1.0, 0.5, 2.0, -0.25, 1.0];
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let admission =
        Admission { min_group_size: 1, keep_zero_variance: true, ..Admission::default() };
    for n_broken in 1..group.len() as u32 {
        let (mut left, mut with_zeros) = (Vec::new(), Vec::new());
        for broken in (0_u32..1 << group.len()).filter(|broken| broken.count_ones() == n_broken) {
            let member = |(place, reward): (usize, &f64)| {
                let fault = InfraFault { reason: InfraReason::EnvError, message: String::new() };
                let is_broken = broken >> place & 1 == 1;
                let outcome = if is_broken { Outcome::InfraFault(fault) } else { Outcome::Done };
                ended(place as u32, *reward, outcome)
            };
            let members = group.iter().enumerate().map(member).collect();
            let rewards = rewards(&admit(admission, members, 0));
            assert_eq!(rewards.len(), group.len() - n_broken as usize);
            left.push(mean(&rewards));
            with_zeros.push(rewards.iter().sum::<f64>() / group.len() as f64);
        }
        assert!((mean(&left) - mean(&group)).abs() < 1e-12, "{n_broken} broken");
        assert!((mean(&with_zeros) - mean(&group)).abs() > 0.1, "{n_broken} broken");
    }
}

// A group of one viable member gets advantage 0, and never its raw reward.
#[test]
fn the_only_viable_member_gets_no_advantage() {
    let group = vec![drawn_by(0, &[5], 3.0), drawn_by(1, &[0], 1.0)];
    let admission =
        Admission { min_group_size: 1, keep_zero_variance: true, ..Admission::default() };
    let mut admitted = admit(admission, group, 5);
    assert_eq!(rewards(&admitted), [3.0]);
    assign_credit(&OUTCOME, &mut admitted.members).expect("finite rewards");
    assert!(admitted.members[0].sampled().all(|token| token.advantage == Some(0.0)));
    assert_eq!(OUTCOME.name(), "outcome");
}

// Shaping moves rewards where outcomes differ, and each penalty comes once.
#[test]
fn penalties_shape_a_group_that_differs() {
    let truncated = Outcome::Truncated(Limit::SampledTokens);
    let group = vec![
        drawn_by(0, &[0; 4], 1.0),
        Trajectory { outcome: truncated, ..drawn_by(1, &[0; 15], 1.0) },
        drawn_by(2, &[0; 40], 0.0),
    ];
    let admission = Admission {
        truncated: TruncatedEpisodes::Penalise(-0.25),
        overlong: Some(Overlong { max_tokens: 20, buffer: 10 }),
        ..Admission::default()
    };
    assert_eq!(rewards(&admit(admission, group, 0)), [1.0, 1.0 - 0.5 - 0.25, -1.0]);
}

// Mistakes are masked as set; their rewards stay in the baseline.
#[test]
fn mistakes_are_masked_by_setting_and_count_in_the_baseline() {
    let clean = drawn_by(0, &[0, 0], 1.0);
    let fault = Outcome::AgentFault(AgentFault::Empty);
    let faulty = Trajectory { outcome: fault, ..drawn_by(1, &[0, 0], 0.0) };
    let mut malformed =
        Built::new(2).turn(vec![SampledToken::new(1, -0.5, PolicyVersion(0)); 2], 0.0);
    malformed = malformed.turn(vec![SampledToken::new(2, -0.5, PolicyVersion(0))], 0.5);
    malformed.trajectory.turns[0].faults = 1;
    let user = {
        let mut one = drawn_by(3, &[0, 0], 0.0);
        one.mask_turns(MaskReason::User, |_| true);
        Trajectory { outcome: Outcome::AgentFault(AgentFault::Empty), ..one }
    };
    let group = vec![clean, faulty, malformed.trajectory, user];
    let of = |mask_agent_faults, mask_parse_errors| {
        let admission = Admission { mask_agent_faults, mask_parse_errors, ..Admission::default() };
        let admitted = admit(admission, group.clone(), 0);
        assert_eq!(rewards(&admitted), [1.0, 0.0, 0.5, 0.0]);
        admitted.members.iter().map(masks).collect::<Vec<_>>()
    };
    let user = vec![Some(MaskReason::User); 2];
    let plain = vec![vec![None; 2], vec![None; 2], vec![None; 3], user.clone()];
    assert_eq!(of(false, false), plain);
    let parse = Some(MaskReason::ParseError);
    assert_eq!(
        of(true, true),
        [vec![None; 2], vec![Some(MaskReason::AgentFault); 2], vec![parse, parse, None], user]
    );
}

// Reasons have words of their own in the books.
#[test]
fn every_reason_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<_> =
        DropReason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), DropReason::ALL.len());
}
