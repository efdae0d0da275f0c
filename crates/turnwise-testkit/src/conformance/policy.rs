//! The contract of [`Policy`], as far as constant weights show it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use turnwise_environment::check::Check;
use turnwise_environment::{Random, derive_seed};
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId, check_sample};
use turnwise_trajectory::{SampledToken, Sampling, StopReason, TokenId};

use super::assert_passed;

/// The number of tokens that a request of the suite samples.
const N_DRAWN: usize = 12;

/// Checks that an engine's answers are a function of `(prompt, sampling, seed, first_index)` only, that stops,
/// interruptions and dropped requests work as [`Policy`] says, and that each answer passes [`check_sample`].
///
/// The engine must have the tokens from 0 to below `vocab_size` and at least 64 positions, and constant weights.
///
/// # Panics
/// Panics if the contract is broken, with every check that failed.
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_testkit::{Hashed, conformance};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// conformance::policy(Arc::new(Hashed { n_ids: 30 }), 30).await;
/// # }
/// ```
pub async fn policy(policy: Arc<dyn Policy>, vocab_size: TokenId) {
    let engine = Engine { policy, vocab_size };
    let check = |name, result| Check { name, result };
    let checks = [
        check("an answer keeps its promises under every sampling", engine.answers().await),
        check("a session does not matter", engine.sessions().await),
        check("it does not matter what else is served", engine.company().await),
        check("it does not matter where a turn was cut", engine.cuts().await),
        check("a conversation goes on as if it were new", engine.conversations().await),
        check("drawing ends after a stop token", engine.stops().await),
        check("an interruption hands over what is drawn", engine.interruptions().await),
        check("a request that was dropped leaves no trace", engine.drops().await),
    ];
    assert_passed("policy", &checks);
}

/// Checks that an engine with `max_positions` positions rejects invalid requests with [`PolicyError::Refused`], and
/// serves others afterwards.
///
/// # Panics
/// Panics if the contract is broken, with every check that failed.
pub async fn policy_refusals(policy: Arc<dyn Policy>, vocab_size: TokenId, max_positions: usize) {
    let engine = Engine { policy, vocab_size };
    let ask = engine.request(1, 4);
    let long = engine.prompt(1, max_positions);
    let newer = engine.policy.version().next();
    let sampling = Sampling { temperature: -1.0, ..Sampling::default() };
    let beyond = vec![0, vocab_size, 1];
    let wrong = [
        ("no prompt", SampleRequest { prompt: Vec::new(), ..ask.clone() }),
        ("no token to draw", SampleRequest { max_tokens: 0, ..ask.clone() }),
        ("more tokens than there are positions", SampleRequest { prompt: long, ..ask.clone() }),
        ("tokens without end", SampleRequest { max_tokens: usize::MAX, ..ask.clone() }),
        ("a token that it does not know", SampleRequest { prompt: beyond, ..ask.clone() }),
        ("weights that there are not yet", SampleRequest { min_version: newer, ..ask.clone() }),
        ("a temperature below 0", SampleRequest { sampling, ..ask.clone() }),
    ];
    let mut checks = Vec::new();
    for (name, request) in wrong {
        let result = match engine.policy.sample(request).await {
            Err(PolicyError::Refused(reason)) => Ok(reason),
            other => Err(format!("it answered {other:?}")),
        };
        checks.push(Check { name, result });
        checks.push(Check {
            name: "it serves on",
            result: engine.draw(&ask).await.map(|sample| said(&sample)),
        });
    }
    assert_passed("policy", &checks);
}

type CheckResult = Result<String, String>;

struct Engine {
    policy: Arc<dyn Policy>,
    vocab_size: TokenId,
}

impl Engine {
    fn prompt(&self, seed: u64, length: usize) -> Vec<TokenId> {
        let mut random = Random::new(derive_seed(7, seed));
        (0..length).map(|_| random.below(u64::from(self.vocab_size)) as TokenId).collect()
    }

    fn request(&self, seed: u64, length: usize) -> SampleRequest {
        SampleRequest {
            prompt: self.prompt(seed, length),
            stop: Vec::new(),
            max_tokens: N_DRAWN,
            sampling: Sampling::default(),
            seed,
            first_index: 0,
            min_version: self.policy.version(),
            session: SessionId(derive_seed(99, seed)),
        }
    }

    /// Returns requests with short and longer prompts, some of which share a prefix.
    fn requests(&self) -> Vec<SampleRequest> {
        let mut requests: Vec<_> =
            [1, 2, 7, 20].into_iter().zip(1..).map(|(n, seed)| self.request(seed, n)).collect();
        let shared = requests[3].prompt.clone();
        let more = [self.prompt(9, 5), vec![0]].map(|end| [&*shared, &*end].concat());
        for (prompt, seed) in more.into_iter().zip(10..) {
            requests.push(SampleRequest { prompt, ..self.request(seed, 1) });
        }
        requests
    }

    /// Samples a whole answer that passes [`check_sample`].
    async fn draw(&self, request: &SampleRequest) -> Result<Sample, String> {
        let answered = self.policy.sample(request.clone()).await;
        let sample = answered.map_err(|error| format!("it failed: {error}"))?;
        check_sample(&sample, request)?;
        if sample.stop == StopReason::Interrupted {
            return Err("it was interrupted, and nobody asked for that".to_owned());
        }
        Ok(sample)
    }

    async fn answers(&self) -> CheckResult {
        let samplings = [
            Sampling::default(),
            Sampling::greedy(),
            Sampling { temperature: 0.5, ..Sampling::default() },
            Sampling { top_k: 3, ..Sampling::default() },
            Sampling { top_p: 0.5, ..Sampling::default() },
            Sampling { min_p: 0.2, ..Sampling::default() },
        ];
        for (sampling, seed) in samplings.into_iter().zip(30..) {
            let request = SampleRequest { sampling, ..self.request(seed, 5) };
            let sample = self.draw(&request).await?;
            same(&self.draw(&request).await?, &sample, &format!("{sampling:?} asked twice"))?;
            let served = self.policy.version();
            if let Some(token) = sample.tokens.iter().find(|token| token.version != served) {
                return Err(format!("{} stamped while {served} is served", token.version));
            }
        }
        let one = SampleRequest { max_tokens: 1, ..self.request(40, 3) };
        Ok(said(&self.draw(&one).await?))
    }

    async fn sessions(&self) -> CheckResult {
        for request in self.requests() {
            let other =
                SampleRequest { session: SessionId(request.session.0 ^ 1), ..request.clone() };
            let sample = self.draw(&request).await?;
            same(&self.draw(&other).await?, &sample, "another session")?;
            self.policy.release(request.session);
            same(&self.draw(&request).await?, &sample, "a session that was released")?;
            let again = SampleRequest { seed: request.seed ^ 1, ..request.clone() };
            let same_seed = self.draw(&again).await?.tokens == sample.tokens;
            if same_seed && self.vocab_size > 8 {
                return Err(format!("seeds do not matter: {:?}", sample.tokens));
            }
        }
        Ok("sessions are for keeping alone".to_owned())
    }

    async fn company(&self) -> CheckResult {
        let requests = self.requests();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(self.draw(request).await?);
        }
        let mut together = tokio::task::JoinSet::new();
        for (index, request) in requests.iter().cloned().enumerate() {
            let policy = self.policy.clone();
            together.spawn(async move { (index, policy.sample(request).await) });
        }
        while let Some(joined) = together.join_next().await {
            let (index, sample) = joined.map_err(|error| error.to_string())?;
            let sample = sample.map_err(|error| format!("it failed: {error}"))?;
            same(&sample, &alone[index], "served beside others")?;
        }
        Ok(format!("{} at once", requests.len()))
    }

    async fn cuts(&self) -> CheckResult {
        for request in self.requests() {
            let whole = self.draw(&request).await?;
            for (length, session) in [(1, 0), (5, 1), (N_DRAWN - 1, 2)] {
                let mut tokens = Vec::new();
                while tokens.len() < N_DRAWN {
                    let left = rest(&request, &tokens, length);
                    // Some pieces find the KV cache of the last one, and some do not.
                    if session == 1 {
                        self.policy.release(left.session);
                    }
                    let left =
                        SampleRequest { session: SessionId(left.session.0 ^ session), ..left };
                    tokens.extend(self.draw(&left).await?.tokens);
                }
                same(&Sample { tokens, ..whole.clone() }, &whole, &format!("cut at {length}"))?;
            }
        }
        Ok("pieces make the whole".to_owned())
    }

    /// Runs turns with messages in between, then a conversation that forks, all in one session.
    async fn conversations(&self) -> CheckResult {
        let mut request = SampleRequest { max_tokens: 6, ..self.request(50, 9) };
        let mut forks = vec![self.prompt(50, 4), self.prompt(51, 9)];
        for turn in 0..4_u64 {
            let sample = self.draw(&request).await?;
            let anew =
                SampleRequest { session: SessionId(derive_seed(1000, turn)), ..request.clone() };
            same(&self.draw(&anew).await?, &sample, &format!("turn {turn} anew"))?;
            request.prompt.extend(sample.tokens.iter().map(|token| token.id));
            forks.push([&*request.prompt, &*self.prompt(60 + turn, 1)].concat());
            request.prompt.extend(self.prompt(70 + turn, 3));
            request.first_index += sample.tokens.len() as u64;
        }
        for prompt in forks.into_iter().rev() {
            let fork = SampleRequest { prompt, ..request.clone() };
            let anew = SampleRequest { session: SessionId(12), ..fork.clone() };
            let sample = self.draw(&fork).await?;
            self.policy.release(SessionId(12));
            same(&self.draw(&anew).await?, &sample, "a fork anew")?;
        }
        Ok("four turns and six forks".to_owned())
    }

    async fn stops(&self) -> CheckResult {
        for request in self.requests() {
            let whole = self.draw(&request).await?;
            for (at, token) in whole.tokens.iter().enumerate() {
                let stop = token.id;
                let first = whole.tokens.iter().position(|token| token.id == stop).unwrap_or(at);
                let stopped =
                    self.draw(&SampleRequest { stop: vec![stop], ..request.clone() }).await?;
                let expected = Sample {
                    tokens: whole.tokens[..=first].to_vec(),
                    stop: StopReason::EndOfTurn,
                    ..whole.clone()
                };
                same(&stopped, &expected, &format!("a stop at token {first}"))?;
            }
        }
        Ok("the stop token is the last".to_owned())
    }

    async fn interruptions(&self) -> CheckResult {
        let mut handed_over = 0;
        for request in self.requests() {
            let whole = self.draw(&request).await?;
            let mut asked = pin!(self.policy.sample(request.clone()));
            // The request is in flight once it was polled.
            let early = poll_once(asked.as_mut()).await;
            let can = self.policy.interrupt(request.session);
            let answered = match early {
                Some(answered) => answered,
                None => asked.await,
            };
            let first = answered.map_err(|error| format!("it failed: {error}"))?;
            check_sample(&first, &request)?;
            if first.stop == StopReason::Interrupted {
                if !can {
                    return Err("interrupted, after it said that it cannot be".to_owned());
                }
                handed_over += 1;
            }
            let mut tokens = first.tokens;
            if tokens.len() < N_DRAWN {
                let left = rest(&request, &tokens, N_DRAWN);
                tokens.extend(self.draw(&left).await?.tokens);
            }
            same(&Sample { tokens, ..whole.clone() }, &whole, "the rest after an interruption")?;
        }
        Ok(format!("{handed_over} were in time"))
    }

    async fn drops(&self) -> CheckResult {
        for request in self.requests() {
            let whole = self.draw(&request).await?;
            for _ in 0..3 {
                let dropped = self.policy.sample(request.clone());
                poll_once(pin!(dropped)).await;
            }
            same(&self.draw(&request).await?, &whole, "after three that were dropped")?;
            self.policy.release(request.session);
        }
        Ok("given up and asked again".to_owned())
    }
}

/// Returns a request for the rest of an answer after these sampled tokens, at most `length` tokens.
fn rest(request: &SampleRequest, drawn: &[SampledToken], length: usize) -> SampleRequest {
    let drawn_ids: Vec<TokenId> = drawn.iter().map(|token| token.id).collect();
    SampleRequest {
        prompt: [&*request.prompt, &*drawn_ids].concat(),
        max_tokens: length.min(N_DRAWN - drawn.len()),
        first_index: drawn.len() as u64,
        ..request.clone()
    }
}

/// Returns the answer, if it is ready at the first poll.
async fn poll_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn said(sample: &Sample) -> String {
    format!("{} tokens of {}", sample.tokens.len(), sample.engine)
}

/// Checks equality to the last bit, log-probabilities included.
fn same(found: &Sample, expected: &Sample, what: &str) -> Result<(), String> {
    if (&found.tokens, found.stop) == (&expected.tokens, expected.stop) {
        return Ok(());
    }
    let shown = |sample: &Sample| {
        let tokens: Vec<_> = sample.tokens.iter().map(|token| (token.id, token.logprob)).collect();
        format!("{:?} {tokens:?}", sample.stop)
    };
    Err(format!("{what}: {} instead of {}", shown(found), shown(expected)))
}
