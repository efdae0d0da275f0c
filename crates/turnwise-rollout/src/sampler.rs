use turnwise_environment::derive_seed;
use turnwise_trajectory::{Sampling, TokenId};

/// The random number in `[0, 1)` that draws token `index` of the episode with this sampling seed.
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

/// Draws tokens from logits; keeps its scratch memory between draws.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    /// Candidates with their weight relative to the likeliest, likeliest first.
    kept: Vec<(TokenId, f64)>,
}

impl Sampler {
    /// Draws one token by inversion and returns it with the log-probability it was drawn with, in nats.
    ///
    /// # Panics
    /// When there are no logits.
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
        let (likeliest, highest) = maximum(logits);
        if sampling.temperature == 0.0 {
            return (likeliest, 0.0);
        }
        let inverse_temperature = 1.0 / f64::from(sampling.temperature);
        let weight = |logit: f32| (f64::from(logit - highest) * inverse_temperature).exp();
        if sampling.covers_vocabulary() {
            return draw_all(logits, weight, uniform);
        }
        self.keep(logits, sampling, weight);
        draw_kept(&self.kept, uniform)
    }

    /// Fills `kept` with what top-k, top-p and min-p leave, in that order.
    fn keep(&mut self, logits: &[f32], sampling: &Sampling, weight: impl Fn(f32) -> f64) {
        self.kept.clear();
        self.kept
            .extend(logits.iter().enumerate().map(|(id, logit)| (id as TokenId, weight(*logit))));
        // Stable: of equally likely tokens the smaller id comes first, on every machine.
        self.kept.sort_by(|a, b| b.1.total_cmp(&a.1));
        if sampling.top_k > 0 {
            self.kept.truncate(sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            let enough =
                f64::from(sampling.top_p) * self.kept.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let reach = |(_, weight): &(TokenId, f64)| {
                sum += weight;
                sum >= enough
            };
            let last = self.kept.iter().position(reach).unwrap_or(self.kept.len() - 1);
            self.kept.truncate(last + 1);
        }
        let floor = f64::from(sampling.min_p) * self.kept[0].1;
        self.kept.retain(|(_, weight)| *weight >= floor);
    }
}

fn maximum(logits: &[f32]) -> (TokenId, f32) {
    assert!(!logits.is_empty(), "there must be a token to draw");
    let mut best = (0, logits[0]);
    for (id, logit) in logits.iter().enumerate().skip(1) {
        if *logit > best.1 {
            best = (id as TokenId, *logit);
        }
    }
    best
}

fn draw_all(logits: &[f32], weight: impl Fn(f32) -> f64, uniform: f64) -> (TokenId, f32) {
    let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for (id, logit) in logits.iter().enumerate() {
        let w = weight(*logit);
        // A token without probability is never drawn, whatever rounding does at the end of the scan.
        if w > 0.0 {
            sum += w;
            last = Some((id as TokenId, w));
            if sum > target {
                break;
            }
        }
    }
    let (id, w) = last.expect("the likeliest token has weight 1");
    (id, logprob(w, total))
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

/// At most 0 whatever rounding does.
fn logprob(weight: f64, total: f64) -> f32 {
    ((weight / total).ln() as f32).min(0.0)
}
