//! Engines that lie or break are found where their answer comes in, and never get a token into a trajectory.

use turnwise_rollout::{Limits, Policy, Sample, SampleRequest};
use turnwise_testkit::{Faulty, Interrupting, Lying};
use turnwise_trajectory::{
    InfraReason, MaskReason, Outcome, PolicyVersion, StopReason, Trajectory,
};

use crate::support::{Cuts, RecordingPolicy, agents, block_on, echoes, identity, limits, play};

fn played_by(policy: &dyn Policy) -> Trajectory {
    played_with(8, policy)
}

fn played_with(seed: u64, policy: &dyn Policy) -> Trajectory {
    let tasks = echoes(3, true);
    let limits = Limits { max_turn_tokens: 4, ..limits() };
    let cuts = Cuts { allowances: vec![4], through_json: false };
    block_on(play(&tasks, identity(&tasks, 2, seed), &agents(), policy, &limits, &cuts)).0
}

fn reason(trajectory: &Trajectory) -> Option<InfraReason> {
    match &trajectory.outcome {
        Outcome::InfraFault(fault) => Some(fault.reason),
        _ => None,
    }
}

/// Rollouts 13.3
#[test]
fn an_engine_that_lies_is_a_fault_of_the_engine() {
    type Lie = fn(&SampleRequest, Sample) -> Sample;
    let lies: [(&str, Lie); 12] = [
        ("no log-probability", |_, sample| with_logprob(sample, f32::NAN)),
        ("an infinite one", |_, sample| with_logprob(sample, f32::NEG_INFINITY)),
        ("a positive one", |_, sample| with_logprob(sample, 0.1)),
        ("too many tokens", |request, mut sample| {
            sample.stop = StopReason::MaxTokens;
            sample.tokens = vec![sample.tokens[0]; request.max_tokens + 1];
            sample
        }),
        ("an empty answer", |_, mut sample| {
            sample.tokens.clear();
            sample
        }),
        ("too few tokens, said to be all", |request, mut sample| {
            sample.tokens.truncate(request.max_tokens - 1);
            sample.stop = StopReason::MaxTokens;
            sample
        }),
        ("a stop token that is none", |_, mut sample| {
            sample.stop = StopReason::EndOfTurn;
            sample.tokens.last_mut().expect("it drew one").id = 1;
            sample
        }),
        ("tokens after a stop token", |_, mut sample| {
            sample.stop = StopReason::MaxTokens;
            sample.tokens.iter_mut().for_each(|token| token.id = 0);
            sample
        }),
        ("versions that fall", |_, mut sample| {
            let first = sample.tokens.first_mut().expect("it drew one");
            first.version = PolicyVersion(2);
            first.kv_version = PolicyVersion(2);
            sample
        }),
        ("keys and values newer than the weights", |_, mut sample| {
            sample.tokens[0].kv_version = PolicyVersion(7);
            sample
        }),
        ("sampling settings nobody has", |_, mut sample| {
            sample.tokens[0].sampling = 3;
            sample
        }),
        ("a mask of its own", |_, mut sample| {
            sample.tokens[0].mask = Some(MaskReason::User);
            sample
        }),
    ];
    for (name, lie) in lies {
        let trajectory = played_by(&Lying { inner: RecordingPolicy::new(4), lie });
        assert_eq!(reason(&trajectory), Some(InfraReason::BadEngine), "{name}");
        assert_eq!(trajectory.reward(), None, "{name}");
    }
}

fn with_logprob(mut sample: Sample, logprob: f32) -> Sample {
    sample.tokens.last_mut().expect("it drew one").logprob = logprob;
    sample
}

/// Rollouts 13.3, 13.7: an engine that is older than the newest token of the branch does not serve it.
#[test]
fn weights_older_than_the_branch_are_refused() {
    let lie = |request: &SampleRequest, mut sample: Sample| {
        let version = if request.first_index == 0 { 3 } else { 2 };
        for token in &mut sample.tokens {
            (token.version, token.kv_version) = (PolicyVersion(version), PolicyVersion(version));
        }
        sample
    };
    let trajectory = played_by(&Lying { inner: RecordingPolicy::new(4), lie });
    assert_eq!(reason(&trajectory), Some(InfraReason::BadEngine));
    assert!(trajectory.sampled().all(|token| token.version == PolicyVersion(3)));
}

/// Rollouts 13.3
#[test]
fn an_engine_that_breaks_is_an_engine_error() {
    let trajectory = played_by(&Faulty::new(RecordingPolicy::new(4), 2));
    assert_eq!(reason(&trajectory), Some(InfraReason::EngineError));
    assert!(trajectory.n_sampled() > 0, "what was drawn before stays in the record");
}

/// Rollouts 13.4: an interruption is no lie, also where the turn was full with it.
#[test]
fn an_interruption_after_the_last_token_of_a_turn_ends_the_turn() {
    let late = |_: &SampleRequest, mut sample: Sample| {
        if sample.stop == StopReason::MaxTokens {
            sample.stop = StopReason::Interrupted;
        }
        sample
    };
    for seed in 0..20 {
        let plain = played_with(seed, &RecordingPolicy::new(4));
        let interrupted = Lying { inner: RecordingPolicy::new(4), lie: late };
        assert_eq!(played_with(seed, &interrupted), plain);
        let often = Interrupting { inner: interrupted, after: 2 };
        assert_eq!(played_with(seed, &often), plain);
    }
}
