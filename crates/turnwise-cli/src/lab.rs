//! `turnwise lab`: measures estimators of the policy gradient.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use turnwise_candle::{AdamW, CandleLearner, Decoder, DecoderConfig, EngineSettings};
use turnwise_lab::credit::{self, Arm, ExperimentError, Levers, Settings, Vocabulary};
use turnwise_lab::{LEGEND, LabError, Measurement, Problem, Setup, measure, problems, table};
use turnwise_rollout::{Policy, StopSignal};

use crate::arguments::{CreditArguments, EstimatorArguments, LabCommand};
use crate::interrupt;
use turnwise_run::Failure;
use turnwise_run::config::nearest;

/// Implements `turnwise lab`.
///
/// # Errors
/// When a problem or an estimator does not exist, a run fails or is interrupted, or `out` fails.
pub(crate) async fn run(command: &LabCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        LabCommand::Estimators(arguments) => estimators(arguments, out),
        LabCommand::Credit(arguments) => compare_credit(arguments, &interrupt::listen(), out).await,
    }
}

fn estimators(arguments: &EstimatorArguments, out: &mut impl Write) -> Result<(), Failure> {
    let EstimatorArguments { group_size, off_policy, json, .. } = *arguments;
    let setup = Setup { group_size, off_policy };
    for problem in chosen(arguments.problem.as_deref())? {
        let mut measured = measure(&problem, setup).map_err(|error| of_estimators(&error))?;
        measured.retain(|one| is_wanted(arguments, one));
        if json {
            measured.iter().try_for_each(|one| print_json(out, one))?;
        } else {
            print(out, &(table(&problem, setup, &measured) + "\n"))?;
        }
    }
    if json { Ok(()) } else { print(out, LEGEND) }
}

fn chosen(name: Option<&str>) -> Result<Vec<Problem>, Failure> {
    let mut problems = problems::all();
    let Some(name) = name else { return Ok(problems) };
    let names: Vec<&str> = problems.iter().map(|problem| problem.name).collect();
    if !names.contains(&name) {
        let all = format!("the problems are {}", names.join(", "));
        let help = nearest(name, &names)
            .map_or(all.clone(), |meant| format!("did you mean `{meant}`? {all}"));
        return Err(Failure::refused(format!("no problem is called `{name}`")).help(help));
    }
    problems.retain(|problem| problem.name == name);
    Ok(problems)
}

fn is_wanted(arguments: &EstimatorArguments, one: &Measurement) -> bool {
    let fits = |name: &str, part: &Option<String>| {
        part.as_ref().is_none_or(|part| name.contains(part.as_str()))
    };
    fits(one.objective, &arguments.objective) && fits(one.credit, &arguments.credit)
}

async fn compare_credit(
    arguments: &CreditArguments,
    stop: &StopSignal,
    out: &mut impl Write,
) -> Result<(), Failure> {
    const ARMS: [Arm; 4] = [Arm::Outcome, Arm::TurnIndex, Arm::TurnBaseline, Arm::Turn];
    let settings = settings(arguments)?;
    let (mut runs, started) = (Vec::new(), Instant::now());
    for seed in arguments.from..arguments.from + arguments.seeds {
        for arm in ARMS {
            let model = model(&settings, seed)?;
            let run = credit::run(&settings, arm, seed, model, stop).await;
            let Some(run) = run.map_err(of_experiment)? else {
                return Err(Failure::new(interrupt::exit_code(), "interrupted"));
            };
            if arguments.json {
                print_json(out, &run)?;
            }
            runs.push(run);
        }
    }
    let compare = |arm: &Arm| credit::compare(&runs, *arm, Arm::Outcome);
    let comparisons: Vec<_> = ARMS[1..].iter().filter_map(compare).collect();
    if arguments.json {
        return comparisons.iter().try_for_each(|one| print_json(out, one));
    }
    let seconds = started.elapsed().as_secs_f64();
    print(out, &format!("{}{seconds:.0} s\n", credit::lines(&settings, &runs, &comparisons)))
}

fn settings(arguments: &CreditArguments) -> Result<Settings, Failure> {
    let CreditArguments { seeds, max_episodes, learning_rate, report_words, judge, .. } =
        *arguments;
    for (name, value) in [("seeds", seeds as usize), ("report-words", report_words)] {
        if value == 0 {
            return Err(Failure::refused(format!("`--{name}` is 0")).help("use at least 1"));
        }
    }
    if !(learning_rate > 0.0 && learning_rate.is_finite()) {
        let what = format!("`--learning-rate` is {learning_rate}");
        return Err(Failure::refused(what).help("use a positive number, such as 1e-3"));
    }
    if !(judge >= 0.0 && judge.is_finite()) {
        let what = format!("`--judge` is {judge}");
        return Err(Failure::refused(what).help("use 0 or a positive number, such as 0.5"));
    }
    let levers = Levers { report_words, judge, ..Levers::default() };
    Ok(Settings { levers, max_episodes, learning_rate, ..Settings::default() })
}

/// Creates a decoder with random weights, the same for the same seed.
fn model(settings: &Settings, seed: u64) -> Result<(Arc<dyn Policy>, CandleLearner), Failure> {
    let config = DecoderConfig {
        hidden_size: 32,
        intermediate_size: 64,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        max_positions: 2 * settings.levers.report_words + 16,
        ..DecoderConfig::small(Vocabulary::new(&settings.levers).n_ids())
    };
    let decoder = Decoder::random(config, seed).map_err(|error| Failure::refused_by(&error))?;
    // A short memory of squared gradients: otherwise the far larger gradients of imitation would slow down training for
    // long.
    let learner = CandleLearner::new(decoder, AdamW { beta2: 0.95, ..AdamW::default() })
        .map_err(|error| Failure::refused_by(&error))?;
    let policy = learner.policy(EngineSettings::default());
    Ok((Arc::new(policy.map_err(|error| Failure::refused_by(&error))?), learner))
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::runtime(&error))?;
    print(out, &(line + "\n"))
}

/// Prints a text; a closed output counts as success.
fn print(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::runtime(&error)),
        _ => Ok(()),
    }
}

fn of_estimators(error: &LabError) -> Failure {
    match error {
        LabError::GroupSize { .. } | LabError::OffPolicy { .. } => Failure::refused_by(error),
        _ => Failure::runtime(error),
    }
}

fn of_experiment(error: ExperimentError) -> Failure {
    match error {
        ExperimentError::Train(error) => error.into(),
        _ => Failure::runtime(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnwise_run::ExitCode;

    fn arguments(problem: &str) -> EstimatorArguments {
        EstimatorArguments {
            problem: Some(problem.to_owned()),
            objective: None,
            credit: None,
            group_size: 2,
            off_policy: 0.0,
            json: false,
        }
    }

    fn printed(arguments: &EstimatorArguments) -> String {
        let mut out = Vec::new();
        estimators(arguments, &mut out).expect("it can be measured");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_table_is_the_same_every_time_and_fits() {
        let text = printed(&arguments("stopping"));
        assert_eq!(text, printed(&arguments("stopping")));
        assert!(text.starts_with("stopping: "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn a_filter_keeps_what_it_names() {
        let wanted = EstimatorArguments {
            objective: Some("impostor".to_owned()),
            credit: Some("to_go".to_owned()),
            json: true,
            ..arguments("lengths")
        };
        let text = printed(&wanted);
        assert!(text.lines().count() > 1, "{text}");
        for line in text.lines() {
            let one: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(one["problem"], "lengths");
            assert!(one["objective"].as_str().is_some_and(|name| name.contains("impostor")));
            assert!(one["credit"].as_str().is_some_and(|name| name.contains("to_go")));
        }
    }

    #[test]
    fn a_problem_that_is_not_there_is_named_with_those_there_are() {
        let failure = estimators(&arguments("stoping"), &mut Vec::new()).expect_err("refused");
        let text = failure.to_string();
        assert!(
            text.starts_with(
                "error: no problem is called `stoping`\n  help: did you mean `stopping`? "
            ),
            "{text}"
        );
        assert_eq!(failure.code, ExitCode::Refused);
    }

    #[test]
    fn a_group_that_cannot_be_enumerated_is_refused() {
        let huge = EstimatorArguments { group_size: 40, ..arguments("stopping") };
        let failure = estimators(&huge, &mut Vec::new()).expect_err("refused");
        assert_eq!(failure.code, ExitCode::Refused);
    }

    /// One short run through the whole loop, with the command's model.
    #[tokio::test]
    async fn a_run_that_is_given_up_says_so() {
        let arguments = CreditArguments {
            seeds: 1,
            from: 1,
            max_episodes: 64,
            learning_rate: 1e-3,
            report_words: 2,
            judge: 0.5,
            json: true,
        };
        let mut out = Vec::new();
        let done = compare_credit(&arguments, &StopSignal::never(), &mut out).await;
        done.expect("it runs");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.lines().count(), 4, "{text}");
        for line in text.lines() {
            let run: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&run["episodes"], &run["solved"]), (&64.into(), &false.into()));
        }
    }
}
