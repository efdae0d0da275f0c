use crate::layout::Choice;

/// The experts of each token, and an order of rows by expert: an expert's tokens are consecutive, so that it multiplies
/// one matrix.
#[derive(Clone, Debug)]
pub(crate) struct Routing {
    pub(crate) n_chosen: usize,
    /// The experts of each token, the most probable first. `[N, n_chosen]`
    pub(crate) chosen: Vec<u32>,
    /// The start of each expert's rows, and the end of the last. `[E + 1]`
    pub(crate) starts: Vec<usize>,
    /// The entry of `chosen` that each row belongs to. `[M]`, where M is N times `n_chosen`
    pub(crate) origins: Vec<u32>,
    /// The row of each entry of `chosen`. `[M]`
    pub(crate) places: Vec<u32>,
}

impl Routing {
    /// Chooses experts by the router's `probabilities`. `[N, E]`
    pub(crate) fn new(probabilities: &[f32], choice: Choice) -> Self {
        let Choice { n_experts, n_chosen, .. } = choice;
        let mut chosen = Vec::with_capacity(probabilities.len() / n_experts * n_chosen);
        for token in probabilities.chunks_exact(n_experts) {
            choose(token, n_chosen, &mut chosen);
        }
        let mut starts = vec![0; n_experts + 1];
        for expert in &chosen {
            starts[*expert as usize + 1] += 1;
        }
        for expert in 0..n_experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let (mut origins, mut places) = (vec![0; chosen.len()], Vec::with_capacity(chosen.len()));
        for (origin, expert) in chosen.iter().enumerate() {
            let place = next[*expert as usize];
            next[*expert as usize] += 1;
            origins[place] = origin as u32;
            places.push(place as u32);
        }
        Self { n_chosen, chosen, starts, origins, places }
    }

    /// Iterates over the token of each row. `[M]`
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.origins.iter().map(|origin| origin / self.n_chosen as u32)
    }

    /// Iterates over the number of tokens of each expert. `[E]`
    pub(crate) fn counts(&self) -> impl Iterator<Item = usize> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0])
    }
}

/// Appends the most probable experts; ties go to the first.
fn choose(probabilities: &[f32], n_chosen: usize, chosen: &mut Vec<u32>) {
    let start = chosen.len();
    for _ in 0..n_chosen {
        let mut best: Option<usize> = None;
        for (expert, probability) in probabilities.iter().enumerate() {
            let better = best.is_none_or(|best| *probability > probabilities[best]);
            if better && !chosen[start..].contains(&(expert as u32)) {
                best = Some(expert);
            }
        }
        chosen.extend(best.map(|expert| expert as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experts_tokens_lie_together_and_every_choice_has_its_row() {
        let choice = Choice { n_experts: 4, n_chosen: 2, renormalize: true };
        let nan = f32::NAN;
        let probabilities = [
            [0.1, 0.5, 0.1, 0.3],
            [0.4, 0.1, 0.1, 0.4],
            [0.25, 0.25, 0.25, 0.25],
            [nan, nan, nan, nan],
        ];
        let routing = Routing::new(probabilities.as_flattened(), choice);
        assert_eq!(routing.chosen, [1, 3, 0, 3, 0, 1, 0, 1]);
        assert_eq!(routing.starts, [0, 3, 6, 6, 8]);
        assert_eq!(routing.counts().collect::<Vec<_>>(), [3, 3, 0, 2]);
        for (origin, place) in routing.places.iter().enumerate() {
            assert_eq!(routing.origins[*place as usize] as usize, origin);
            let expert = routing.chosen[origin] as usize;
            assert!(
                (routing.starts[expert]..routing.starts[expert + 1]).contains(&(*place as usize))
            );
        }
        assert_eq!(routing.tokens().collect::<Vec<_>>(), [1, 2, 3, 0, 2, 3, 0, 1]);
    }
}
