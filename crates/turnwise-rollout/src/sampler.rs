use turnwise_environment::derive_seed;
use turnwise_kernels::math;
use turnwise_kernels::reduce::{self, BLOCK};
use turnwise_trajectory::{Sampling, TokenId};

/// Returns the random number in `[0, 1)` for token `index` of the episode with this sampling seed.
///
/// ```
/// use turnwise_rollout::uniform_at;
///
/// assert_eq!(uniform_at(7, 3), uniform_at(7, 3));
/// assert!((0.0..1.0).contains(&uniform_at(7, 4)));
/// ```
#[must_use]
pub fn uniform_at(seed: u64, index: u64) -> f64 {
    (derive_seed(seed, index) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Samples tokens from logits, and reuses its scratch memory.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    /// Candidates with their weight relative to the most likely token, most likely first.
    kept: Vec<(TokenId, f64)>,
    /// Sums of the weights of blocks of the vocabulary.
    sums: Vec<f64>,
    /// Logits of the allowed ids.
    allowed: Vec<f32>,
    /// The ids that the last token was sampled from; empty for the whole vocabulary.
    support: Vec<TokenId>,
    /// The vocabulary, partly sorted by likelihood.
    ids: Vec<TokenId>,
}

impl Sampler {
    /// Samples one token by inversion and returns it with its log-probability, in nats. Logits must be finite: an
    /// engine checks that before sampling, and otherwise returns
    /// [`PolicyError::NotFinite`](crate::PolicyError::NotFinite).
    ///
    /// # Panics
    /// Panics if there are no logits.
    ///
    /// ```
    /// use turnwise_rollout::Sampler;
    /// use turnwise_trajectory::Sampling;
    ///
    /// let (token, logprob) = Sampler::default().draw(&[0.0, 3.0_f32.ln()], &Sampling::default(), 0.5);
    /// assert_eq!(token, 1);
    /// assert!((logprob - 0.75_f32.ln()).abs() < 1e-6);
    /// ```
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, uniform: f64) -> (TokenId, f32) {
        assert!(!logits.is_empty(), "there must be a token to sample");
        self.support.clear();
        let highest = reduce::maximum(logits);
        if sampling.temperature == 0.0 {
            let likeliest = logits.iter().position(|logit| *logit == highest).unwrap_or(0);
            return (likeliest as TokenId, 0.0);
        }
        if sampling.covers_vocabulary() {
            return self.draw_all(logits, highest, sampling.temperature, uniform);
        }
        self.keep(logits, highest, sampling);
        self.support.extend(self.kept.iter().map(|(id, _)| *id));
        self.support.sort_unstable();
        draw_kept(&self.kept, uniform)
    }

    /// Returns the ids that the last token was sampled from, in ascending order: those that truncation or a constraint
    /// kept. Empty if every token of the vocabulary could be sampled.
    ///
    /// A trainer computes the softmax over these ids ([`Sample::kept`](crate::Sample::kept)).
    ///
    /// ```
    /// use turnwise_rollout::Sampler;
    /// use turnwise_trajectory::Sampling;
    ///
    /// let mut sampler = Sampler::default();
    /// sampler.draw(&[0.0, 9.0, 8.0], &Sampling { top_k: 2, ..Sampling::default() }, 0.5);
    /// assert_eq!(sampler.support(), [1, 2]);
    /// sampler.draw(&[0.0, 9.0, 8.0], &Sampling::default(), 0.5);
    /// assert!(sampler.support().is_empty());
    /// ```
    #[must_use]
    pub fn support(&self) -> &[TokenId] {
        &self.support
    }

    /// Samples from the allowed ids, which are in ascending order; returns `None` if there are none.
    ///
    /// # Panics
    /// Panics if an id has no logit.
    ///
    /// ```
    /// use turnwise_rollout::Sampler;
    /// use turnwise_trajectory::Sampling;
    ///
    /// let logits = [9.0, 0.0, 8.0, 3.0_f32.ln()];
    /// let drawn = Sampler::default().draw_from(&logits, &[1, 3], &Sampling::default(), 0.5);
    /// let (token, logprob) = drawn.expect("something is allowed");
    /// assert_eq!(token, 3);
    /// assert!((logprob - 0.75_f32.ln()).abs() < 1e-6);
    /// ```
    pub fn draw_from(
        &mut self,
        logits: &[f32],
        allowed: &[TokenId],
        sampling: &Sampling,
        uniform: f64,
    ) -> Option<(TokenId, f32)> {
        if allowed.is_empty() {
            return None;
        }
        let mut few = std::mem::take(&mut self.allowed);
        few.clear();
        few.extend(allowed.iter().map(|id| logits[*id as usize]));
        let (place, logprob) = self.draw(&few, sampling, uniform);
        self.allowed = few;
        let id = allowed[place as usize];
        if sampling.temperature == 0.0 {
            self.support.push(id);
        } else if sampling.covers_vocabulary() {
            self.support.extend_from_slice(allowed);
        } else {
            self.support.iter_mut().for_each(|place| *place = allowed[*place as usize]);
        }
        Some((id, logprob))
    }

    /// Samples from the whole vocabulary, in two passes over the logits and a third over one block.
    fn draw_all(
        &mut self,
        logits: &[f32],
        highest: f32,
        temperature: f32,
        uniform: f64,
    ) -> (TokenId, f32) {
        let inverse_temperature = 1.0 / temperature;
        let weight = |logit: f32| math::exp_flushed((logit - highest) * inverse_temperature);
        let total = self.sum(logits, highest, inverse_temperature);
        let target = uniform * total;
        let (block, before) = block_of(&self.sums, target);
        let mut sum = before;
        let mut drawn = None;
        for (offset, logit) in logits[block * BLOCK..].iter().take(BLOCK).enumerate() {
            let weight = f64::from(weight(*logit));
            // A token without probability is never sampled, even if rounding leaves the running sum below the target.
            if weight > 0.0 {
                sum += weight;
                drawn = Some(block * BLOCK + offset);
                if sum > target {
                    break;
                }
            }
        }
        let id = drawn.expect("the sum of a block that is drawn from is not 0");
        // The log-probability is computed from the logit and not from the rounded weight, so that an unlikely token
        // keeps its precision.
        let distance = f64::from(logits[id] - highest) / f64::from(temperature);
        (id as TokenId, at_most_zero((distance - total.ln()) as f32))
    }

    /// Fills `sums`, and returns the sum of all weights.
    fn sum(&mut self, logits: &[f32], highest: f32, inverse_temperature: f32) -> f64 {
        self.sums.clear();
        self.sums.resize(logits.len().div_ceil(BLOCK), 0.0);
        reduce::exponential_block_sums(logits, highest, inverse_temperature, &mut self.sums);
        self.sums.iter().sum()
    }

    /// Fills `kept` with the ids that top-k, top-p and min-p keep, applied in that order.
    fn keep(&mut self, logits: &[f32], highest: f32, sampling: &Sampling) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
        let inverse_temperature = 1.0 / f64::from(temperature);
        let weight =
            |id: TokenId| (f64::from(logits[id as usize] - highest) * inverse_temperature).exp();
        let count = if top_k == 0 { logits.len() } else { logits.len().min(top_k as usize) };
        let of_all =
            (top_k == 0 && top_p < 1.0).then(|| self.sum(logits, highest, 1.0 / temperature));
        let mut likeliest = Likeliest::new(&mut self.ids, logits);
        let mut of_kept = || (0..count).map(|place| weight(likeliest.get(place))).sum::<f64>();
        let enough = if top_p < 1.0 {
            f64::from(top_p) * of_all.unwrap_or_else(&mut of_kept)
        } else {
            f64::INFINITY
        };
        self.kept.clear();
        let mut sum = 0.0;
        for place in 0..count {
            let id = likeliest.get(place);
            let weight = weight(id);
            // The most likely token weighs 1.
            if sum >= enough || weight < f64::from(min_p) {
                break;
            }
            sum += weight;
            self.kept.push((id, weight));
        }
    }
}

/// The vocabulary, most likely token first, sorted lazily: as far as requested, or a few times that.
struct Likeliest<'a> {
    ids: &'a mut Vec<TokenId>,
    logits: &'a [f32],
    /// The number of sorted ids.
    sorted: usize,
}

impl<'a> Likeliest<'a> {
    /// Lists the vocabulary in `ids`, which is scratch memory, and sorts nothing yet.
    fn new(ids: &'a mut Vec<TokenId>, logits: &'a [f32]) -> Self {
        ids.clear();
        ids.extend(0..logits.len() as TokenId);
        Self { ids, logits, sorted: 0 }
    }

    fn get(&mut self, place: usize) -> TokenId {
        while place >= self.sorted {
            self.sort_more();
        }
        self.ids[place]
    }

    fn sort_more(&mut self) {
        const FIRST: usize = 64;
        let rest = &mut self.ids[self.sorted..];
        let count = rest.len().min(FIRST.max(3 * self.sorted));
        // Among equally likely tokens the smaller id comes first, on every machine. Adding 0.0 makes -0 equal to 0.
        let logit = |id: &TokenId| self.logits[*id as usize] + 0.0;
        let order = |a: &TokenId, b: &TokenId| logit(b).total_cmp(&logit(a)).then(a.cmp(b));
        if count < rest.len() {
            rest.select_nth_unstable_by(count, order);
        }
        rest[..count].sort_unstable_by(order);
        self.sorted += count;
    }
}

/// Returns the block in which the running sum passes `target`, and the sum of the blocks before it. If rounding leaves
/// none, returns the last block with a positive sum.
fn block_of(sums: &[f64], target: f64) -> (usize, f64) {
    let (mut found, mut running) = ((0, 0.0), 0.0);
    for (block, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        found = (block, running);
        running += sum;
        if running > target {
            break;
        }
    }
    found
}

fn draw_kept(kept: &[(TokenId, f64)], uniform: f64) -> (TokenId, f32) {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let reach = |(_, weight): &&(TokenId, f64)| {
        sum += weight;
        sum > target
    };
    let (id, w) = kept.iter().find(reach).unwrap_or(&kept[kept.len() - 1]);
    (*id, logprob(*w, total))
}

fn logprob(weight: f64, total: f64) -> f32 {
    at_most_zero((weight / total).ln() as f32)
}

/// Clamps a log-probability to at most 0, against rounding. NaN stays NaN, which `min` would turn into 0, the
/// log-probability of a certain token.
fn at_most_zero(logprob: f32) -> f32 {
    if logprob > 0.0 { 0.0 } else { logprob }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uneven(length: usize, seed: u64) -> Vec<f32> {
        (0..length as u64).map(|i| uniform_at(seed, i) as f32 * 30.0 - 15.0).collect()
    }

    /// Samples by inversion in double precision, in the order of ids.
    fn plain(logits: &[f32], temperature: f32, uniform: f64) -> (TokenId, f64) {
        let weights = logits.iter().map(|logit| (f64::from(*logit) / f64::from(temperature)).exp());
        let total: f64 = weights.clone().sum();
        let mut sum = 0.0;
        let found = weights.clone().position(|weight| {
            sum += weight;
            sum > uniform * total
        });
        let found = found.unwrap_or(logits.len() - 1);
        (found as TokenId, (weights.collect::<Vec<_>>()[found] / total).ln())
    }

    #[test]
    fn a_draw_is_the_inversion_and_its_log_probability_is_exact() {
        let mut sampler = Sampler::default();
        for length in [1, 2, 15, 16, 63, 64, 65, 130, 1000] {
            for temperature in [1.0, 0.6, 2.0] {
                let sampling = Sampling { temperature, ..Sampling::default() };
                for seed in 0..40 {
                    let (logits, uniform) = (uneven(length, seed), uniform_at(99, seed));
                    let (id, logprob) = sampler.draw(&logits, &sampling, uniform);
                    let (expected, exact) = plain(&logits, temperature, uniform);
                    assert_eq!(id, expected);
                    assert!((f64::from(logprob) - exact).abs() < 1e-6, "{logprob} {exact}");
                }
            }
        }
    }

    /// Computes every weight and sorts everything.
    fn plainly_kept(logits: &[f32], sampling: &Sampling) -> Vec<TokenId> {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let temperature = f64::from(sampling.temperature);
        let weight = |logit: f32| (f64::from(logit - highest) / temperature).exp();
        let mut kept: Vec<(TokenId, f64)> = (0..).zip(logits.iter().map(|l| weight(*l))).collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1));
        if sampling.top_k > 0 {
            kept.truncate(sampling.top_k as usize);
        }
        let enough = f64::from(sampling.top_p) * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        if sampling.top_p < 1.0 {
            kept.retain(|(_, weight)| {
                let is_missing = sum < enough;
                sum += weight;
                is_missing
            });
        }
        kept.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
        kept.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn truncation_keeps_what_sorting_everything_keeps() {
        let mut sampler = Sampler::default();
        for length in [1, 5, 63, 64, 65, 300, 2000] {
            for seed in 0..12 {
                // Rounding makes some tokens equally likely, and the small scale makes some distributions flat.
                let scale = [1.0, 0.01][seed as usize % 2];
                let round = |logit: &f32| (logit * 4.0).round() * 0.25 * scale;
                let logits: Vec<f32> = uneven(length, seed).iter().map(round).collect();
                for top_k in [0, 1, 20, 500, 5000] {
                    for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (1.0, 0.05), (0.5, 0.6)] {
                        let sampling = Sampling { top_k, top_p, min_p, temperature: 0.7 };
                        let highest = reduce::maximum(&logits);
                        sampler.keep(&logits, highest, &sampling);
                        let kept: Vec<TokenId> = sampler.kept.iter().map(|(id, _)| *id).collect();
                        assert_eq!(kept, plainly_kept(&logits, &sampling), "{sampling:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_probability_is_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 300];
        (logits[70], logits[200]) = (1.0, 1.0);
        for uniform in [0.0, 0.499_999, 0.5, 0.999_999_999_999] {
            let (id, logprob) = Sampler::default().draw(&logits, &Sampling::default(), uniform);
            assert_eq!(id, if uniform < 0.5 { 70 } else { 200 });
            assert!((logprob - 0.5_f32.ln()).abs() < 1e-7);
        }
    }

    #[test]
    fn a_draw_from_what_is_allowed_is_a_draw_from_a_smaller_vocabulary() {
        let mut sampler = Sampler::default();
        let logits = uneven(500, 3);
        let allowed: Vec<TokenId> = (0..500).filter(|id| id % 7 == 2).collect();
        let few: Vec<f32> = allowed.iter().map(|id| logits[*id as usize]).collect();
        for sampling in [
            Sampling::default(),
            Sampling::greedy(),
            Sampling { top_k: 5, temperature: 2.0, ..Sampling::default() },
        ] {
            for index in 0..50 {
                let uniform = uniform_at(5, index);
                let (id, logprob) =
                    sampler.draw_from(&logits, &allowed, &sampling, uniform).unwrap();
                let kept = sampler.support().to_vec();
                let (place, expected) = sampler.draw(&few, &sampling, uniform);
                assert_eq!((id, logprob), (allowed[place as usize], expected));
                assert!(kept.contains(&id) && kept.is_sorted());
                let n_kept = match sampling {
                    Sampling { temperature: 0.0, .. } => 1,
                    Sampling { top_k: 5, .. } => 5,
                    _ => allowed.len(),
                };
                assert_eq!(kept.len(), n_kept);
            }
        }
        assert_eq!(sampler.draw_from(&logits, &[], &Sampling::default(), 0.5), None);
    }
}
