//! Engines that break their contract.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Builder;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest};
use turnwise_testkit::{Hashed, Interrupting, Lying, conformance};
use turnwise_trajectory::{PolicyVersion, StopReason};

const VOCAB: u32 = 30;

/// Returns the panic message of the suite; empty if it passes.
fn found(policy: impl Policy + 'static) -> String {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let check = || runtime.block_on(conformance::policy(Arc::new(policy), VOCAB));
    match std::panic::catch_unwind(AssertUnwindSafe(check)) {
        Ok(()) => String::new(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

fn hashed() -> Hashed {
    Hashed { n_ids: VOCAB as usize }
}

fn lying(lie: fn(&SampleRequest, Sample) -> Sample) -> String {
    found(Lying { inner: hashed(), lie })
}

#[test]
fn an_engine_that_keeps_its_contract_passes() {
    assert_eq!(found(hashed()), "");
}

#[test]
fn what_an_answer_must_not_depend_on_is_found() {
    let by_session = lying(|request, mut sample| {
        sample.tokens[0].logprob -= (request.session.0 % 7) as f32;
        sample
    });
    assert!(by_session.contains("a session does not matter"), "{by_session}");
    let by_length = lying(|request, mut sample| {
        sample.tokens[0].logprob -= request.max_tokens as f32;
        sample
    });
    assert!(by_length.contains("where a turn was cut"), "{by_length}");
    let by_index = lying(|request, mut sample| {
        if request.first_index > 0 && request.prompt.len() > 15 {
            sample.tokens[0].logprob -= 1e-4;
        }
        sample
    });
    assert!(by_index.contains("where a turn was cut"), "{by_index}");
}

#[test]
fn an_answer_that_breaks_its_promises_is_found() {
    let past_the_stop = lying(|_, mut sample| {
        sample.stop = StopReason::MaxTokens;
        sample
    });
    assert!(past_the_stop.contains("drawing ends after a stop token"), "{past_the_stop}");
    let older = lying(|_, mut sample| {
        for token in &mut sample.tokens {
            (token.version, token.kv_version) = (PolicyVersion(3), PolicyVersion(3));
        }
        sample
    });
    assert!(older.contains("stamped while"), "{older}");
    let cut = found(Interrupting { inner: hashed(), after: 5 });
    assert!(cut.contains("nobody asked for that"), "{cut}");
}

/// A policy that remembers the requests of others.
struct Remembering(std::sync::Mutex<u64>);

#[async_trait]
impl Policy for Remembering {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let mut request = request;
        let asked = {
            let mut asked = self.0.lock().expect("nobody panics with it");
            *asked += 1;
            *asked
        };
        request.seed += asked;
        hashed().sample(request).await
    }
}

#[test]
fn an_engine_with_a_random_generator_of_its_own_is_found() {
    let said = found(Remembering(std::sync::Mutex::new(0)));
    assert!(said.contains("asked twice"), "{said}");
}
