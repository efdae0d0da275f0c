use turnwise_objective::{
    Advantages, Clip, Denominator, GspoToken, LengthWeight, Objective, ObjectiveError, Sequence,
    SequenceLoss,
};

/// **Wrong** on purpose, to be measured: the sequence ratio with its gradient flowing through s_i, and an advantage per
/// token.
///
/// ```text
/// J  = mean_i (1/n_i) Σ_t min( s_i A_it, clip(s_i, 1−ε_l, 1+ε_h) A_it )
/// ∇J = mean_i (s_i/n_i) · [ (1/n_i) Σ_t A_it a_it ] · Σ_t ∇log π_θ(y_t)
/// ```
///
/// Its value is GSPO-token's. Its gradient is not: s_i is the same number for every token, so each token gets the
/// *mean* of the sequence's credit, and credit by turn is averaged away. With equal credit on all tokens it is GSPO.
/// Several training systems make this mistake when their sequence-level ratio meets per-token advantages, and no loss
/// curve shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlainRatioImpostor {
    /// The range of s_i.
    pub clip: Clip,
    /// The weight of a sequence by its length.
    pub length_weight: LengthWeight,
}

impl Objective for PlainRatioImpostor {
    fn name(&self) -> &'static str {
        "plain_ratio_impostor"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let honest = GspoToken { clip: self.clip, length_weight: self.length_weight };
        let evaluated = honest.evaluate(sequence, gradient)?;
        if let Advantages::PerToken(_) = sequence.advantages() {
            // ∂loss/∂log s_i is the sum of GSPO-token's coefficients, and ∂log s_i/∂log π_t is 1/n_i for every token.
            let mean = gradient.iter().sum::<f64>() / gradient.len().max(1) as f64;
            gradient.fill(mean);
        }
        Ok(evaluated)
    }
}
