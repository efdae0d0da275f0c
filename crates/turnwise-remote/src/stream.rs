//! Tokens as a server sends them, before they are checked.

use turnwise_rollout::{Sample, SampleRequest};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId};

use crate::fault::ServerFault;

/// A token as a server sends it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SentToken {
    pub(crate) id: TokenId,
    pub(crate) logprob: f64,
    /// The ids that truncation kept, if the server says so.
    pub(crate) kept: Option<Vec<TokenId>>,
}

/// Why a server ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// A token of the request's stop set.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The server gave the request up, for instance because somebody paused it.
    Aborted,
}

/// A part of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SentPiece {
    pub(crate) tokens: Vec<SentToken>,
    pub(crate) finish: Option<Finish>,
    /// The labels of the weights that sampled the whole answer, where the server says so.
    pub(crate) labels: Vec<String>,
}

/// The tokens of one request, gathered over one or several streams.
#[derive(Debug)]
pub(crate) struct Gathered<'a> {
    request: &'a SampleRequest,
    pub(crate) sample: Sample,
    /// The number of tokens of earlier streams.
    n_settled: usize,
}

/// The rounding with which a log-probability of 0 may be positive.
const ROUNDING: f64 = 1e-3;

impl<'a> Gathered<'a> {
    pub(crate) fn new(request: &'a SampleRequest, engine: &str) -> Self {
        Self { request, sample: Sample::new(engine), n_settled: 0 }
    }

    /// Returns the request for what is missing.
    pub(crate) fn rest(&self) -> SampleRequest {
        let mut rest = self.request.clone();
        rest.prompt.extend(self.sample.tokens.iter().map(|token| token.id));
        rest.max_tokens -= self.sample.tokens.len();
        rest.first_index += self.sample.tokens.len() as u64;
        rest
    }

    /// Checks tokens of a stream, and appends them under the version of the weights that sampled them.
    pub(crate) fn append(
        &mut self,
        tokens: &[SentToken],
        version: PolicyVersion,
    ) -> Result<(), ServerFault> {
        for token in tokens {
            let n = self.sample.tokens.len();
            if n == self.request.max_tokens {
                return Err(ServerFault::Wrong(format!("more than {n} tokens, as asked for")));
            }
            if self.ends_with_stop() {
                return Err(ServerFault::Wrong(
                    "tokens after a token that ends the turn".to_owned(),
                ));
            }
            let (logprob, kept) = self.distribution(token)?;
            self.sample.push(SampledToken::new(token.id, logprob, version), &kept);
        }
        Ok(())
    }

    /// Returns the log-probability that is recorded, and the kept ids.
    fn distribution(&self, token: &SentToken) -> Result<(f32, Vec<TokenId>), ServerFault> {
        let id = token.id;
        let sampling = &self.request.sampling;
        if sampling.temperature == 0.0 {
            return Ok((0.0, vec![id]));
        }
        let logprob = token.logprob;
        // vLLM sends -9999 for a number that it does not have.
        if !logprob.is_finite() || logprob > ROUNDING || logprob <= -9999.0 {
            return Err(ServerFault::Wrong(format!("log-probability {logprob} of token {id}")));
        }
        let logprob = logprob.min(0.0) as f32;
        match &token.kept {
            Some(kept) if !sampling.covers_vocabulary() => {
                let mut kept = kept.clone();
                kept.sort_unstable();
                kept.dedup();
                if kept.binary_search(&id).is_err() {
                    return Err(ServerFault::Wrong(format!("token {id} is not among those it was sampled from")));
                }
                Ok((logprob, kept))
            }
            None if !sampling.covers_vocabulary() => Err(ServerFault::Refused {
                status: 200,
                message: "its answers lack the ids that top_p, top_k or min_p kept (vLLM has --return-sampling-mask); without \
                          them, set top_p = 1, top_k = 0 and min_p = 0"
                    .to_owned(),
            }),
            _ => Ok((logprob, Vec::new())),
        }
    }

    /// Checks how a stream ended, and keeps its tokens. Returns whether the request is complete.
    pub(crate) fn finish(&mut self, finish: Finish) -> Result<bool, ServerFault> {
        let is_full = self.sample.tokens.len() == self.request.max_tokens;
        let is_stopped = self.ends_with_stop();
        match finish {
            Finish::Stop if !is_stopped => {
                return Err(ServerFault::Wrong(
                    "the end of a turn without a token that ends it".to_owned(),
                ));
            }
            Finish::Length if !(is_full || is_stopped) => {
                let (n, wanted) = (self.sample.tokens.len(), self.request.max_tokens);
                return Err(ServerFault::Wrong(format!("{n} tokens instead of {wanted}")));
            }
            _ => {}
        }
        self.settle();
        Ok(is_full || is_stopped)
    }

    /// Keeps the tokens of a stream that was cut.
    pub(crate) fn settle(&mut self) {
        self.n_settled = self.sample.tokens.len();
    }

    /// Forgets the tokens of a stream that went wrong.
    pub(crate) fn forget(&mut self) {
        self.sample.tokens.truncate(self.n_settled);
        self.sample.kept.truncate(self.n_settled);
    }

    /// Returns whether nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.ends_with_stop() || self.sample.tokens.len() == self.request.max_tokens
    }

    /// Returns the answer.
    pub(crate) fn into_sample(mut self, is_interrupted: bool) -> Sample {
        self.sample.stop = match (self.ends_with_stop(), is_interrupted) {
            (true, _) => StopReason::EndOfTurn,
            (false, true) => StopReason::Interrupted,
            (false, false) => StopReason::MaxTokens,
        };
        if self.sample.kept.iter().all(Vec::is_empty) {
            self.sample.kept.clear();
        }
        self.sample
    }

    fn ends_with_stop(&self) -> bool {
        let last = self.sample.tokens.last();
        last.is_some_and(|token| self.request.stop.contains(&token.id))
    }
}

#[cfg(test)]
mod tests {
    use turnwise_rollout::{SessionId, check_sample};
    use turnwise_trajectory::Sampling;

    use super::*;

    fn request() -> SampleRequest {
        SampleRequest {
            prompt: vec![1, 2],
            stop: vec![9],
            max_tokens: 3,
            sampling: Sampling::default(),
            seed: 1,
            first_index: 5,
            min_version: PolicyVersion(0),
            session: SessionId(1),
        }
    }

    fn sent(id: TokenId, logprob: f64) -> SentToken {
        SentToken { id, logprob, kept: None }
    }

    #[test]
    fn a_request_goes_on_where_a_stream_was_cut_and_each_token_keeps_its_version() {
        let request = request();
        let mut gathered = Gathered::new(&request, "vllm");
        gathered.append(&[sent(7, -1.0)], PolicyVersion(3)).unwrap();
        assert!(!gathered.finish(Finish::Aborted).unwrap());
        let rest = gathered.rest();
        assert_eq!((rest.prompt, rest.max_tokens, rest.first_index), (vec![1, 2, 7], 2, 6));
        gathered.append(&[sent(8, -0.5)], PolicyVersion(4)).unwrap();
        // The second stream goes wrong after a token, which is forgotten.
        gathered.forget();
        gathered.append(&[sent(9, 1e-6)], PolicyVersion(4)).unwrap();
        assert!(gathered.finish(Finish::Stop).unwrap());
        let sample = gathered.into_sample(false);
        check_sample(&sample, &request).unwrap();
        let tokens = sample.tokens.iter().map(|token| (token.id, token.logprob, token.version.0));
        assert_eq!(tokens.collect::<Vec<_>>(), [(7, -1.0, 3), (9, 0.0, 4)]);
    }

    #[test]
    fn what_a_server_must_not_send_is_refused() {
        let request = request();
        let wrong = |tokens: &[SentToken]| {
            let mut gathered = Gathered::new(&request, "vllm");
            match gathered.append(tokens, PolicyVersion(0)) {
                Err(ServerFault::Wrong(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        for logprob in [0.5, f64::NAN, f64::NEG_INFINITY, f64::INFINITY, -9999.0] {
            assert!(wrong(&[sent(1, logprob)]).starts_with("log-probability"), "{logprob}");
        }
        assert!(wrong(&[sent(9, -1.0), sent(1, -1.0)]).starts_with("tokens after"));
        assert!(wrong(&vec![sent(1, -1.0); 4]).starts_with("more than 3"));
        let mut gathered = Gathered::new(&request, "vllm");
        assert!(gathered.finish(Finish::Stop).is_err());
        assert!(gathered.finish(Finish::Length).is_err());
    }

    #[test]
    fn truncated_sampling_needs_the_kept_ids() {
        let sampling = Sampling { top_k: 2, ..Sampling::default() };
        let request = SampleRequest { sampling, ..request() };
        let mut gathered = Gathered::new(&request, "vllm");
        let refused = gathered.append(&[sent(1, -1.0)], PolicyVersion(0));
        assert!(matches!(refused, Err(ServerFault::Refused { .. })), "{refused:?}");
        let token = |kept: &[TokenId]| SentToken { kept: Some(kept.to_vec()), ..sent(5, -0.5) };
        assert!(gathered.append(&[token(&[4, 3])], PolicyVersion(0)).is_err());
        gathered.append(&[token(&[5, 3])], PolicyVersion(0)).unwrap();
        assert_eq!(gathered.into_sample(true).kept, [[3, 5]]);
    }

    #[test]
    fn the_most_likely_token_has_probability_1() {
        let request = SampleRequest { sampling: Sampling::greedy(), ..request() };
        let mut gathered = Gathered::new(&request, "vllm");
        gathered.append(&[sent(5, -0.7)], PolicyVersion(0)).unwrap();
        let sample = gathered.into_sample(true);
        assert_eq!((sample.tokens[0].logprob, &*sample.kept[0]), (0.0, &[5][..]));
    }
}
