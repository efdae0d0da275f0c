//! The objective and the credit that the settings name, and the check that each setting is read by the chosen one.

use turnwise_objective::{
    Cispo, Clip, Dapo, DrGrpo, Gmpo, GroupAdvantage, Grpo, Gspo, GspoToken, GspoTurn, KlEstimator,
    LengthWeight, Objective, ObjectiveError, Reinforce, Sapo, Std, WithKl, WithOffPolicyMask,
};
use turnwise_training::{
    AutoClip, Behavior, Correction, Credit, GigpoCredit, OutcomeCredit, ReinforcePlusPlusCredit,
    ReturnCredit, Stretch, TurnBaselineCredit, TurnCredit, TurnIndexBiasedCredit,
};

use super::schema::{
    ClipRule, Config, CreditChoice, CreditName, Estimator, Normalise, ObjectiveChoice,
    ObjectiveName,
};
use super::validate::{Impossible, refuse_if};

/// The number added to a standard deviation: 0, so that advantages do not depend on the unit of the rewards.
const EPSILON: f64 = 0.0;

/// Creates the objective, with the published value for every setting that is left out.
///
/// # Errors
/// When a number is out of its range.
pub(crate) fn objective(config: &Config) -> Result<Box<dyn Objective>, ObjectiveError> {
    let choice = &config.objective;
    let length_weight = choice.length_weight.map_or(LengthWeight::Mean, Into::into);
    let mut inner: Box<dyn Objective> = match choice.name {
        ObjectiveName::Gspo => Box::new(Gspo { clip: clip(choice)?, length_weight }),
        ObjectiveName::GspoToken => Box::new(GspoToken { clip: clip(choice)?, length_weight }),
        ObjectiveName::GspoTurn => Box::new(GspoTurn { clip: clip(choice)?, length_weight }),
        ObjectiveName::Grpo => Box::new(Grpo { clip: clip(choice)? }),
        ObjectiveName::Dapo => Box::new(Dapo { clip: clip(choice)? }),
        ObjectiveName::DrGrpo => Box::new(DrGrpo {
            clip: clip(choice)?,
            max_tokens: choice.max_tokens.unwrap_or(config.limits.max_sampled_tokens),
        }),
        ObjectiveName::Cispo => {
            Box::new(Cispo::new(choice.clip_low, choice.clip_high.unwrap_or(0.2))?)
        }
        ObjectiveName::Gmpo => Box::new(Gmpo::new(
            choice.log_clip_low.unwrap_or(Gmpo::PAPER.log_low()),
            choice.log_clip_high.unwrap_or(Gmpo::PAPER.log_high()),
        )?),
        ObjectiveName::Sapo => Box::new(Sapo::new(
            choice.tau_positive.unwrap_or(Sapo::PAPER.tau_positive()),
            choice.tau_negative.unwrap_or(Sapo::PAPER.tau_negative()),
        )?),
        ObjectiveName::Reinforce => Box::new(Reinforce { length_weight }),
    };
    if let Some(max_kl) = choice.off_policy_mask {
        inner = Box::new(WithOffPolicyMask::new(inner, max_kl)?);
    }
    let estimator = match choice.kl.estimator {
        Some(Estimator::K1) => KlEstimator::K1,
        Some(Estimator::K2) => KlEstimator::K2,
        Some(Estimator::K3) | None => KlEstimator::K3,
    };
    if choice.kl.beta > 0.0 {
        return Ok(Box::new(WithKl::new(inner, estimator, choice.kl.beta)?));
    }
    Ok(inner)
}

/// Returns the rule that sets the clip range, if the settings name one.
pub(crate) fn auto_clip(config: &Config) -> Option<AutoClip> {
    let choice = &config.objective;
    (choice.clip == Some(ClipRule::Auto)).then(|| AutoClip {
        multiple: choice.clip_multiple.unwrap_or(AutoClip::MULTIPLE),
        // Wide: what is clipped before anything is measured is arbitrary.
        first: Clip::PAPER_GRPO,
    })
}

/// Returns the clip range, with the published value for every bound that is left out; the range of GSPO for an objective
/// without one.
fn clip(choice: &ObjectiveChoice) -> Result<Clip, ObjectiveError> {
    let published = published_clip(choice.name).unwrap_or(Clip::PAPER_GSPO);
    let low = choice.clip_low.unwrap_or(published.low());
    let clip = Clip::new(low, choice.clip_high.unwrap_or(published.high()))?;
    choice.dual_clip.map_or(Ok(clip), |bound| clip.with_dual(bound))
}

/// Returns the published clip range of an objective; `None` if it has no range around 1.
fn published_clip(name: ObjectiveName) -> Option<Clip> {
    match name {
        ObjectiveName::Gspo | ObjectiveName::GspoToken | ObjectiveName::GspoTurn => {
            Some(Clip::PAPER_GSPO)
        }
        ObjectiveName::Grpo => Some(Clip::PAPER_GRPO),
        ObjectiveName::Dapo => Some(Clip::PAPER_DAPO),
        ObjectiveName::DrGrpo => Some(Clip::PAPER_PPO),
        ObjectiveName::Cispo
        | ObjectiveName::Gmpo
        | ObjectiveName::Sapo
        | ObjectiveName::Reinforce => None,
    }
}

/// Returns the clip range in use; `None` for an objective without one.
pub(crate) fn clip_range(choice: &ObjectiveChoice) -> Option<Clip> {
    published_clip(choice.name).and_then(|_| clip(choice).ok())
}

/// Creates the credit, with the published value for every setting that is left out.
#[must_use]
pub(crate) fn credit(config: &Config) -> Box<dyn Credit> {
    let choice = &config.credit;
    // Dr. GRPO is GRPO without either normalisation (arXiv 2503.20783).
    let published = match config.objective.name {
        ObjectiveName::DrGrpo => Normalise::Mean,
        _ => Normalise::MeanStd,
    };
    let advantage = match choice.normalise.unwrap_or(published) {
        Normalise::MeanStd => GroupAdvantage::MeanStd { std: Std::Sample, epsilon: EPSILON },
        Normalise::Mean => GroupAdvantage::MeanOnly,
        Normalise::LeaveOneOut => GroupAdvantage::LeaveOneOut,
    };
    let gamma = choice.gamma.unwrap_or(1.0);
    match choice.name {
        CreditName::Outcome => Box::new(OutcomeCredit { advantage }),
        CreditName::Return => Box::new(ReturnCredit { gamma }),
        CreditName::TurnBaseline => Box::new(TurnBaselineCredit { gamma }),
        CreditName::Turn => Box::new(TurnCredit {
            advantage,
            gamma,
            outcome_weight: choice.outcome_weight.unwrap_or(1.0),
            turn_weight: choice.turn_weight.unwrap_or(1.0),
        }),
        CreditName::Gigpo => Box::new(GigpoCredit {
            advantage,
            gamma: choice.gamma.unwrap_or(0.95),
            step_weight: choice.step_weight.unwrap_or(1.0),
        }),
        CreditName::ReinforcePlusPlus => {
            Box::new(ReinforcePlusPlusCredit { std: Std::Sample, epsilon: EPSILON })
        }
        CreditName::TurnIndexBiased => Box::new(TurnIndexBiasedCredit { gamma }),
    }
}

/// Refuses settings that the chosen objective and credit do not read, and combinations that are impossible.
pub(super) fn check(config: &Config) -> Result<(), Impossible> {
    check_objective_settings(&config.objective)?;
    check_clip(&config.objective)?;
    // Settings that a run wrote may name the default estimator, so `k3` is accepted without a penalty.
    let is_other_estimator =
        matches!(config.objective.kl.estimator, Some(Estimator::K1 | Estimator::K2));
    refuse_if(
        is_other_estimator && config.objective.kl.beta == 0.0,
        "objective.kl.estimator",
        || "is not used while objective.kl.beta is 0".to_owned(),
        "leave it out, or set objective.kl.beta",
    )?;
    refuse_if(
        config.objective.kl.estimator == Some(Estimator::K1) && config.objective.kl.beta > 0.0,
        "objective.kl.estimator",
        || "= \"k1\" pulls nowhere as a penalty: its gradient is 0 on average".to_owned(),
        "use k2 or k3",
    )?;
    check_credit_settings(&config.credit)?;
    check_together(config)
}

/// Refuses a rule of the clip range beside numbers, or with an objective that does not clip the ratio of a sequence.
fn check_clip(choice: &ObjectiveChoice) -> Result<(), Impossible> {
    use ObjectiveName::{Gspo, GspoToken, GspoTurn};
    let has_numbers = choice.clip_low.is_some() || choice.clip_high.is_some();
    refuse_if(
        choice.clip.is_some() && has_numbers,
        "objective.clip",
        || "stands beside clip_low or clip_high, which it would replace".to_owned(),
        "leave the numbers out, or leave objective.clip out",
    )?;
    let is_auto = choice.clip == Some(ClipRule::Auto);
    refuse_if(
        is_auto && ![Gspo, GspoToken, GspoTurn].contains(&choice.name),
        "objective.clip",
        || {
            "= \"auto\" measures the ratio of sequences, which this objective does not clip"
                .to_owned()
        },
        "use gspo, gspo_token or gspo_turn, or set clip_low and clip_high",
    )?;
    refuse_if(
        choice.clip_multiple.is_some() && !is_auto,
        "objective.clip_multiple",
        || "is read with objective.clip = \"auto\" alone".to_owned(),
        "set objective.clip = \"auto\", or leave it out",
    )?;
    let is_positive =
        choice.clip_multiple.is_none_or(|multiple| multiple.is_finite() && multiple > 0.0);
    refuse_if(
        !is_positive,
        "objective.clip_multiple",
        || "is not a positive number".to_owned(),
        "use 1, or a number near it",
    )
}

fn check_objective_settings(choice: &ObjectiveChoice) -> Result<(), Impossible> {
    use ObjectiveName::{
        Cispo, Dapo, DrGrpo, Gmpo, Grpo, Gspo, GspoToken, GspoTurn, Reinforce, Sapo,
    };
    let clipped: &[_] = &[Gspo, GspoToken, GspoTurn, Grpo, Dapo, DrGrpo];
    let bounded: &[_] = &[Gspo, GspoToken, GspoTurn, Grpo, Dapo, DrGrpo, Cispo];
    let settings: [(&str, bool, &[ObjectiveName]); 9] = [
        ("objective.clip_low", choice.clip_low.is_some(), bounded),
        ("objective.clip_high", choice.clip_high.is_some(), bounded),
        ("objective.dual_clip", choice.dual_clip.is_some(), clipped),
        (
            "objective.length_weight",
            choice.length_weight.is_some(),
            &[Gspo, GspoToken, GspoTurn, Reinforce],
        ),
        ("objective.max_tokens", choice.max_tokens.is_some(), &[DrGrpo]),
        ("objective.log_clip_low", choice.log_clip_low.is_some(), &[Gmpo]),
        ("objective.log_clip_high", choice.log_clip_high.is_some(), &[Gmpo]),
        ("objective.tau_positive", choice.tau_positive.is_some(), &[Sapo]),
        ("objective.tau_negative", choice.tau_negative.is_some(), &[Sapo]),
    ];
    settings.into_iter().try_for_each(|(key, is_set, readers)| {
        let readers: Vec<&str> = readers.iter().map(|name| name.word()).collect();
        refuse_unread(key, is_set, choice.name.word(), &readers)
    })
}

fn check_credit_settings(choice: &CreditChoice) -> Result<(), Impossible> {
    use CreditName::{Gigpo, Outcome, Return, Turn, TurnBaseline, TurnIndexBiased};
    let settings: [(&str, bool, &[CreditName]); 5] = [
        ("credit.normalise", choice.normalise.is_some(), &[Outcome, Turn, Gigpo]),
        (
            "credit.gamma",
            choice.gamma.is_some(),
            &[Return, Turn, TurnBaseline, Gigpo, TurnIndexBiased],
        ),
        ("credit.outcome_weight", choice.outcome_weight.is_some(), &[Turn]),
        ("credit.turn_weight", choice.turn_weight.is_some(), &[Turn]),
        ("credit.step_weight", choice.step_weight.is_some(), &[Gigpo]),
    ];
    settings.into_iter().try_for_each(|(key, is_set, readers)| {
        let readers: Vec<&str> = readers.iter().map(|name| name.word()).collect();
        refuse_unread(key, is_set, choice.name.word(), &readers)
    })
}

/// Refuses a setting that is given but not read, because it would seem to have an effect.
fn refuse_unread(
    key: &'static str,
    is_set: bool,
    name: &str,
    readers: &[&str],
) -> Result<(), Impossible> {
    refuse_if(
        is_set && !readers.contains(&name),
        key,
        || format!("is not used by `{name}`"),
        &format!("leave it out, or choose {}", readers.join(", ")),
    )
}

fn check_together(config: &Config) -> Result<(), Impossible> {
    let (name, credit) = (config.objective.name.word(), config.credit.name.word());
    let one_advantage =
        matches!(config.credit.name, CreditName::Outcome | CreditName::ReinforcePlusPlus);
    let needs_one = matches!(config.objective.name, ObjectiveName::Gspo | ObjectiveName::Gmpo);
    refuse_if(
        needs_one && !one_advantage,
        "credit.name",
        || format!("= \"{credit}\" tells turns apart, and `{name}` has one advantage per sequence"),
        "use the objective gspo_token, or the credit outcome",
    )?;
    let Behavior::Recomputed(Correction { over, .. }) = config.train.behavior else {
        return Ok(());
    };
    refuse_if(
        needs_one && matches!(over, Stretch::Token | Stretch::Version),
        "train.behavior",
        || {
            format!(
                "weighs tokens of a sequence apart, and `{name}` has one advantage per sequence"
            )
        },
        "use over = \"sequence\", or the objective gspo_token",
    )?;
    refuse_if(
        config.objective.off_policy_mask.is_some(),
        "objective.off_policy_mask",
        || "looks at who drew the tokens, which train.behavior = recomputed replaces".to_owned(),
        "leave one of the two out",
    )
}
