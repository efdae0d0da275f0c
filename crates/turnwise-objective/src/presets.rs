//! Every objective with published settings.

use crate::{
    Cispo, Clip, Dapo, DrGrpo, Gmpo, Grpo, Gspo, GspoToken, GspoTurn, LengthWeight, Objective,
    ObjectiveError, Reinforce, Sapo,
};

/// An objective with published settings.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The preset's name: [`Objective::name`], made unique if one objective has several presets.
    pub name: &'static str,
    /// The source of the objective and its settings.
    pub source: &'static str,
    make: fn() -> Result<Box<dyn Objective>, ObjectiveError>,
}

impl Preset {
    /// Creates the objective.
    ///
    /// # Errors
    ///
    /// None of the listed presets fails.
    pub fn objective(&self) -> Result<Box<dyn Objective>, ObjectiveError> {
        (self.make)()
    }
}

const GSPO: &str = "arXiv 2507.18071, section 5.1";

/// Returns all presets, to tabulate estimators on the same tokens.
///
/// ```
/// use turnwise_objective::{Advantages, Sequence, evaluate_step, presets};
///
/// let (logprobs, behavior_logprobs) = ([-0.9, -1.1, -0.3], [-1.0, -1.0, -0.3]);
/// let sequence = Sequence::new(&logprobs, &behavior_logprobs, Advantages::Uniform(1.0))?;
/// for preset in presets() {
///     let step = evaluate_step(&*preset.objective()?, &[sequence.with_turns(&[2, 1])?])?;
///     assert!(step.gradients[0][2] < 0.0, "{} ({})", preset.name, preset.source);
/// }
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[must_use]
pub fn presets() -> Vec<Preset> {
    vec![
        preset("gspo", GSPO, || {
            Ok(Box::new(Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }))
        }),
        preset("gspo_token", GSPO, || {
            Ok(Box::new(GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }))
        }),
        preset("luspo", "arXiv 2602.05261; range of arXiv 2507.18071, section 5.1", || {
            Ok(Box::new(GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Tokens }))
        }),
        preset("gspo_turn", "ROLL (segment); range of arXiv 2507.18071, section 5.1", || {
            Ok(Box::new(GspoTurn { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }))
        }),
        preset("grpo", "arXiv 2402.03300; range of arXiv 2507.18071, section 5.1", || {
            Ok(Box::new(Grpo { clip: Clip::PAPER_GRPO }))
        }),
        preset("grpo_dual_clip", "arXiv 2402.03300; bound 3 of arXiv 1912.09729", || {
            Ok(Box::new(Grpo { clip: Clip::PAPER_GRPO.with_dual(3.0)? }))
        }),
        preset("dapo", "arXiv 2503.14476, section 4.1", || Ok(Box::new(Dapo::PAPER))),
        preset(
            "dr_grpo",
            "arXiv 2503.20783; 3000 tokens of sail-sg/Precision-RL, oat/scripts; range of arXiv 1707.06347",
            || Ok(Box::new(DrGrpo { clip: Clip::PAPER_PPO, max_tokens: 3000 })),
        ),
        preset(
            "cispo",
            "arXiv 2506.13585, which states no bound; 0.2 of verl 0.8.0, examples/cispo_trainer",
            || Ok(Box::new(Cispo::new(None, 0.2)?)),
        ),
        preset("gmpo", "arXiv 2507.20673, section 4.1", || Ok(Box::new(Gmpo::PAPER))),
        preset("sapo", "arXiv 2511.20347, section 5", || Ok(Box::new(Sapo::PAPER))),
        preset("rloo", "arXiv 2402.14740, eq. 7", || Ok(Box::new(Reinforce::RLOO))),
        preset("reinforce_plus_plus", "arXiv 2501.03262; range of arXiv 1707.06347", || {
            Ok(Box::new(Grpo { clip: Clip::PAPER_PPO }))
        }),
    ]
}

fn preset(
    name: &'static str,
    source: &'static str,
    make: fn() -> Result<Box<dyn Objective>, ObjectiveError>,
) -> Preset {
    Preset { name, source, make }
}
