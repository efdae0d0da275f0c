use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use turnwise_rollout::{
    Answers, Continued, Policy, PolicyError, Sample, SampleRequest, SessionId, TokenConstraint,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling, StopReason};

use super::block_on;
use super::engine::{PAGE_BYTES, ids, model, policy, prompt, request, scheduler};
use crate::engine::{Command, Counters, EngineScheduler, Job};
use crate::published::Published;
use crate::{EngineSettings, KvOnUpdate};

type Answer = oneshot::Receiver<Result<Sample, PolicyError>>;

/// A scheduler that the test drives by hand, without its thread.
struct Driven {
    scheduler: EngineScheduler,
    published: Published,
    counters: Arc<Counters>,
}

impl Driven {
    fn new(settings: EngineSettings) -> Self {
        let published = Published::new(PolicyVersion(4), model(1).weights().unwrap());
        let counters = Arc::<Counters>::default();
        let scheduler = scheduler(&published, settings, counters.clone());
        Self { scheduler, published, counters }
    }

    fn ask(&mut self, request: SampleRequest) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.scheduler.take(Command::Sample(Job { request, constraint: None, reply }));
        answer
    }

    fn wait(&mut self, answer: &mut Answer) -> Vec<SampledToken> {
        for _ in 0..10_000 {
            if let Ok(answer) = answer.try_recv() {
                return answer.unwrap().tokens;
            }
            self.scheduler.advance();
        }
        panic!("the engine does not get on: {:?}", self.counters.read());
    }

    fn answer(&mut self, request: SampleRequest) -> Vec<SampledToken> {
        let mut answer = self.ask(request);
        self.wait(&mut answer)
    }
}

/// A session whose first prompt is a prefix of a common text, then text of its own.
#[derive(Clone, Debug)]
struct Story {
    common: u32,
    own: u32,
    turns: Vec<(u32, usize)>,
    is_released: bool,
    /// Steps before it starts.
    delay: usize,
}

fn story() -> impl Strategy<Value = Story> {
    let turns = proptest::collection::vec((0_u32..20, 1_usize..12), 1..4);
    // At most 159 tokens, for a model of 160 positions.
    (0_u32..50, 1_u32..40, turns, any::<bool>(), 0_usize..12).prop_map(
        |(common, own, turns, is_released, delay)| Story { common, own, turns, is_released, delay },
    )
}

/// A running story.
struct Told {
    story: Story,
    session: u64,
    history: Vec<u32>,
    drawn: Vec<SampledToken>,
    turn: usize,
    open: Option<Answer>,
}

impl Told {
    fn new(session: usize, story: &Story) -> Self {
        let own = prompt(session as u32 + 3, story.own);
        let history = [prompt(1, story.common), own].concat();
        let (session, story) = (session as u64, story.clone());
        Self { story, session, history, drawn: Vec::new(), turn: 0, open: None }
    }

    fn next(&self) -> SampleRequest {
        let (_, max_tokens) = self.story.turns[self.turn];
        SampleRequest {
            first_index: self.drawn.len() as u64,
            ..request(self.session, self.history.clone(), max_tokens)
        }
    }

    fn take(&mut self, tokens: Vec<SampledToken>) {
        self.history.extend(ids(&tokens));
        self.history.extend(prompt(self.session as u32 + 50, self.story.turns[self.turn].0));
        self.drawn.extend(tokens);
        self.turn += 1;
    }

    fn is_over(&self) -> bool {
        self.turn == self.story.turns.len()
    }
}

/// Runs all stories together.
fn tell(driven: &mut Driven, stories: &[Story]) -> Vec<Vec<SampledToken>> {
    let mut told: Vec<Told> = stories.iter().enumerate().map(|(i, s)| Told::new(i, s)).collect();
    for step in 0..20_000 {
        for one in told.iter_mut().filter(|one| !one.is_over() && one.story.delay <= step) {
            let mut open = one.open.take().unwrap_or_else(|| driven.ask(one.next()));
            let Ok(answer) = open.try_recv() else {
                one.open = Some(open);
                continue;
            };
            one.take(answer.unwrap().tokens);
            if one.is_over() && one.story.is_released {
                driven.scheduler.take(Command::Release(SessionId(one.session)));
            }
        }
        if told.iter().all(Told::is_over) {
            return told.into_iter().map(|one| one.drawn).collect();
        }
        driven.scheduler.advance();
    }
    panic!("the engine does not get on: {:?}", driven.counters.read());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    /// An engine that shares, copies, evicts and pauses gives the same answers as one that serves single requests and
    /// keeps nothing; its memory stays within the bound, and all pages are free after every session is released.
    #[test]
    fn sharing_and_giving_up_change_no_answer(
        stories in proptest::collection::vec(story(), 1..9),
        pages in 6_u64..40,
        max_step_tokens in 1_usize..80,
        max_batch in 1_usize..9,
        max_drafts in 0_usize..7,
        threads in 1_usize..3,
    ) {
        let max_kv_bytes = pages * PAGE_BYTES;
        let settings = EngineSettings {
            max_batch, max_step_tokens, max_kv_bytes, max_drafts, threads, ..Default::default()
        };
        let mut driven = Driven::new(settings);
        let shared = tell(&mut driven, &stories);
        prop_assert!(driven.counters.read().kv_bytes_peak <= max_kv_bytes);

        let mut plain =
            Driven::new(EngineSettings { max_drafts: 0, threads: 1, ..Default::default() });
        for (session, (story, drawn)) in stories.iter().zip(shared).enumerate() {
            let mut told = Told::new(session, story);
            while !told.is_over() {
                let tokens = plain.answer(told.next());
                plain.scheduler.take(Command::Release(SessionId(told.session)));
                told.take(tokens);
            }
            prop_assert_eq!(told.drawn, drawn);
        }
        prop_assert_eq!(plain.counters.read().reused, 0);
        for session in 0..stories.len() as u64 {
            driven.scheduler.take(Command::Release(SessionId(session)));
        }
        prop_assert_eq!(driven.counters.read().kv_bytes, 0);
    }

    /// New weights arrive in the middle of requests that share pages: each token records the versions that sampled it
    /// and that wrote its keys and values, and with recomputation the remaining tokens are those of the new weights
    /// alone.
    #[test]
    fn new_weights_reach_requests_that_share_pages(
        stories in proptest::collection::vec(story(), 2..7),
        steps in 0_usize..12,
        keeps: bool,
    ) {
        let kv_on_update = if keeps { KvOnUpdate::Keep } else { KvOnUpdate::Recompute };
        let settings =
            EngineSettings { kv_on_update, max_step_tokens: 40, threads: 1, ..Default::default() };
        let mut driven = Driven::new(settings);
        let told: Vec<Told> = stories.iter().enumerate().map(|(i, s)| Told::new(i, s)).collect();
        let asked = told.iter().map(|one| SampleRequest { max_tokens: 15, ..one.next() });
        let asked: Vec<SampleRequest> = asked.collect();
        let mut answers: Vec<Answer> = asked.iter().map(|one| driven.ask(one.clone())).collect();
        (0..steps).for_each(|_| driven.scheduler.advance());
        driven.published.publish(PolicyVersion(5), model(2).weights().unwrap());
        let drawn: Vec<_> = answers.iter_mut().map(|answer| driven.wait(answer)).collect();
        for (asked, tokens) in asked.into_iter().zip(drawn) {
            let n_old = tokens.iter().take_while(|token| token.version == PolicyVersion(4)).count();
            let (old, new) = tokens.split_at(n_old);
            prop_assert!(old.iter().all(|token| token.kv_version == PolicyVersion(4)));
            prop_assert!(new.iter().all(|token| token.version == PolicyVersion(5)));
            let is_pure = new.iter().all(|token| token.kv_version == PolicyVersion(5));
            prop_assert!(is_pure || (keeps && new.iter().all(|token| token.kv_version == PolicyVersion(4))));
            if is_pure && !new.is_empty() {
                let rest = SampleRequest {
                    prompt: [asked.prompt.clone(), ids(old)].concat(),
                    first_index: n_old as u64,
                    max_tokens: new.len(),
                    ..asked
                };
                prop_assert_eq!(&driven.answer(rest)[..], new);
            }
        }
    }
}

#[test]
fn a_common_prompt_is_computed_once_however_many_ask() {
    block_on(async {
        let policy = policy(EngineSettings::default());
        let mut asked = JoinSet::new();
        for session in 0..16 {
            let policy = policy.clone();
            asked.spawn(async move { policy.sample(request(session, prompt(1, 85), 4)).await });
        }
        for answer in asked.join_all().await {
            answer.unwrap();
        }
        // 84 prompt tokens once, the last prompt token of each request, and three sampled tokens of each.
        assert_eq!(policy.stats().computed, 84 + 16 * 4);
        assert_eq!(policy.stats().reused, 15 * 84);
    });
}

/// The second time, every token is drafted, and each is the one that is sampled without drafts: also at the ends of pages
/// and of the request, at a stop, and where a draft is wrong.
#[test]
fn drafts_save_steps_and_change_no_sample() {
    let settings = EngineSettings { threads: 1, ..Default::default() };
    let mut plain = Driven::new(EngineSettings { max_drafts: 0, ..settings });
    let mut drafting = Driven::new(EngineSettings { max_drafts: 4, ..settings });
    let asked = request(1, prompt(3, 20), 70);
    let tokens = plain.answer(asked.clone());
    assert_eq!(drafting.answer(asked.clone()), tokens);
    let before = drafting.counters.read();
    assert_eq!(drafting.answer(asked.clone()), tokens);
    let again = drafting.counters.read().since(&before);
    assert!(again.steps < 25 && again.confirmed > 45, "{again:?}");
    assert_eq!(again.drawn, 70);

    let stop = vec![tokens[33].id];
    let stopped = SampleRequest { stop, ..asked.clone() };
    assert_eq!(drafting.answer(stopped.clone()), plain.answer(stopped));
    // Other random numbers, so that most drafts are wrong, and what they computed is forgotten.
    let other = SampleRequest { seed: 5, ..asked };
    let before = drafting.counters.read();
    assert_eq!(drafting.answer(other.clone()), plain.answer(other));
    let other = drafting.counters.read().since(&before);
    assert!(other.drafted > other.confirmed, "{other:?}");
}

/// Each request fits alone, all together do not: the latest are paused, and all are answered.
#[test]
fn requests_that_outgrow_the_bound_are_paused_and_answered_all_the_same() {
    let settings = |pages| EngineSettings {
        max_kv_bytes: pages * PAGE_BYTES,
        threads: 1,
        ..EngineSettings::default()
    };
    let (mut tight, mut ample) = (Driven::new(settings(6)), Driven::new(settings(1000)));
    let asked = |session| request(session, prompt(session as u32, 20), 130);
    let mut answers: Vec<Answer> = (0..5).map(|session| tight.ask(asked(session))).collect();
    for (session, answer) in answers.iter_mut().enumerate() {
        let tokens = tight.wait(answer);
        assert_eq!(tokens, ample.answer(asked(session as u64)));
    }
    let stats = tight.counters.read();
    assert!(stats.paused > 0 && stats.kv_bytes_peak == 6 * PAGE_BYTES, "{stats:?}");
}

/// The expected log-probability is that of the constrained distribution, token by token, from the learner's logits.
#[test]
fn answers_of_a_list_are_drawn_with_their_probabilities_among_what_is_allowed() {
    block_on(async {
        let model = model(1);
        let policy = policy(EngineSettings::default());
        let answers = Answers::new([vec![5, 9, 2], vec![5, 7, 7, 2], vec![61, 2], vec![8, 2]]);
        let constraint: Arc<dyn TokenConstraint> = Arc::new(answers.clone());
        let score = |ids: Vec<u32>| f64::from(*model.score(&[ids]).unwrap()[0].last().unwrap());
        for session in 0..12 {
            let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            let asked = SampleRequest {
                stop: vec![2],
                sampling,
                ..request(session, prompt(4, 30 + session as u32), 10)
            };
            let answer = policy.sample_constrained(asked.clone(), constraint.clone()).await;
            let sample = answer.unwrap();
            assert_eq!(
                (sample.stop, sample.kept.len()),
                (StopReason::EndOfTurn, sample.tokens.len())
            );
            let mut before = Vec::new();
            for (token, kept) in sample.tokens.iter().zip(&sample.kept) {
                assert_eq!(answers.allowed(&before).as_ref(), Some(kept));
                assert!(kept.contains(&token.id));
                let with = |id: u32| score([&asked.prompt[..], &before, &[id]].concat());
                let total: f64 = kept.iter().map(|id| with(*id).exp()).sum();
                let right = with(token.id) - total.ln();
                assert!((f64::from(token.logprob) - right).abs() < 1e-5, "{token:?} {right}");
                before.push(token.id);
            }
            // A turn that is cut after its first token continues as it would have.
            let first = SampleRequest { max_tokens: 1, ..asked.clone() };
            let first = policy.sample_constrained(first, constraint.clone()).await.unwrap();
            let before = ids(&first.tokens);
            let rest = SampleRequest {
                prompt: [asked.prompt.clone(), before.clone()].concat(),
                first_index: 1,
                ..asked
            };
            let rest_of_it = Arc::new(Continued { constraint: constraint.clone(), before });
            let rest = policy.sample_constrained(rest, rest_of_it).await.unwrap();
            let joined = [first.tokens, rest.tokens].concat();
            assert_eq!(joined, sample.tokens);
        }
        // A request whose constraint allows nothing fails with this reason.
        let nothing = Arc::new(Answers::new([vec![5]]));
        let failed = policy.sample_constrained(request(1, prompt(4, 9), 2), nothing).await;
        assert!(matches!(failed, Err(PolicyError::Failed(_))), "{failed:?}");
    });
}
