//! Both clients and both of our servers: an episode at a server is the episode itself.

use turnwise_calculator::CalculatorSettings;
use turnwise_environment::check::check_suite;
use turnwise_environment::{Environment, EnvironmentError, Observation, Split, Step, Suite};
use turnwise_serve::{
    OpenEnvOptions, OrsOptions, Protocol, RewardForm, RewardReading, ServerSettings, openenv_tasks,
    ors_tasks,
};

use crate::peers::{Served, chain};
use crate::support::run;

fn calculator() -> Suite {
    let settings = CalculatorSettings { operations: 2, tasks: 60, ..CalculatorSettings::default() };
    turnwise_calculator::suite(settings).unwrap()
}

fn remote(protocol: Protocol, url: &str, reward: RewardReading) -> Result<Suite, EnvironmentError> {
    let url = url.to_owned();
    match protocol {
        Protocol::Ors => ors_tasks(&OrsOptions { url, reward, ..OrsOptions::default() }),
        Protocol::OpenEnv => {
            openenv_tasks(&OpenEnvOptions { url, reward, ..OpenEnvOptions::default() })
        }
    }
}

/// Plays the expert's episode: the agent's texts, the rewards that were given, and whether the task was solved.
async fn played(
    suite: &Suite,
    mut environment: Box<dyn Environment>,
) -> (Vec<String>, Vec<f64>, bool) {
    let mut expert = calculator().make_expert(3).unwrap();
    let mut seen: Observation = environment.reset(5).await.unwrap();
    let (mut texts, mut rewards) = (Vec::new(), Vec::new());
    loop {
        texts.extend(seen.messages.iter().map(|message| message.content.clone()));
        let action = expert.act(&without_instructions(&seen));
        match environment.step(action).await.unwrap() {
            Step::Next { observation, reward, faults, .. } => {
                assert_eq!(faults, 0, "{} {observation:?}", suite.name());
                rewards.extend(reward);
                seen = observation;
            }
            Step::End { reward, solved, .. } => {
                rewards.extend(reward);
                return (texts, rewards, solved);
            }
        }
    }
}

/// Leaves out what a server puts before the environment's own text.
fn without_instructions(seen: &Observation) -> Observation {
    let mut seen = seen.clone();
    for message in &mut seen.messages {
        if let Some(start) = message.content.rfind("Compute ") {
            message.content.drain(..start);
        }
    }
    seen
}

#[test]
fn an_episode_at_a_server_is_the_episode_itself() {
    for protocol in [Protocol::Ors, Protocol::OpenEnv] {
        let served = Served::suite(ServerSettings::new(protocol), calculator());
        let remote = remote(protocol, &served.url, RewardReading::Turn).unwrap();
        run(async {
            let own = calculator();
            for split in [Split::Train, Split::HeldOut] {
                assert_eq!(remote.tasks(split).len(), own.tasks(split).len());
                for task in [0, 1] {
                    let there = played(&remote, remote.tasks(split).environment(task)).await;
                    let here = played(&own, own.tasks(split).environment(task)).await;
                    // The server puts the suite's instructions before its first text.
                    assert!(there.0[0].ends_with(&here.0[0]), "{:?}", there.0[0]);
                    assert_eq!(there.0[1..], here.0[1..]);
                    assert_eq!((there.1, there.2), (here.1, here.2));
                }
            }
        });
    }
}

/// Checks everything that an environment promises, hostile actions among it.
fn holds_the_contract(protocol: Protocol) {
    let served = Served::suite(ServerSettings::new(protocol), calculator());
    let remote = remote(protocol, &served.url, RewardReading::Turn).unwrap();
    run(async {
        let checks = check_suite(&remote).await;
        let wrong: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(wrong.is_empty() && checks.len() > 12, "{wrong:?}");
    });
}

#[test]
fn an_environment_behind_ors_holds_the_contract() {
    holds_the_contract(Protocol::Ors);
}

#[test]
fn an_environment_behind_openenv_holds_the_contract() {
    holds_the_contract(Protocol::OpenEnv);
}

#[test]
fn the_last_reward_is_that_of_the_episode_where_the_server_sums_itself() {
    for protocol in [Protocol::Ors, Protocol::OpenEnv] {
        let settings =
            ServerSettings { reward_form: RewardForm::Total, ..ServerSettings::new(protocol) };
        let served = Served::suite(settings, calculator());
        let remote = remote(protocol, &served.url, RewardReading::Last).unwrap();
        run(async {
            let there = played(&remote, remote.tasks(Split::Train).environment(0)).await;
            let own = calculator();
            let here = played(&own, own.tasks(Split::Train).environment(0)).await;
            assert_eq!((there.1, there.2), (here.1, here.2));
        });
    }
}

#[test]
fn a_token_lets_in_and_is_told_to_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "s3cret-token\n").unwrap();
    for protocol in [Protocol::Ors, Protocol::OpenEnv] {
        let settings = ServerSettings {
            token: Some("s3cret-token".to_owned()),
            ..ServerSettings::new(protocol)
        };
        let served = Served::suite(settings, calculator());
        let error = remote(protocol, &served.url, RewardReading::Turn).expect_err("no token");
        assert!(chain(&error).contains("401"), "{}", chain(&error));
        let (url, token_file) = (served.url.clone(), Some(file.clone()));
        let remote = match protocol {
            Protocol::Ors => ors_tasks(&OrsOptions { url, token_file, ..OrsOptions::default() }),
            Protocol::OpenEnv => {
                openenv_tasks(&OpenEnvOptions { url, token_file, ..OpenEnvOptions::default() })
            }
        };
        let remote = remote.unwrap();
        assert!(!format!("{remote:?}").contains("s3cret"));
        run(async {
            played(&remote, remote.tasks(Split::Train).environment(0)).await;
        });
    }
    for (text, why) in [("", "empty"), ("a\u{7}b", "characters that a header cannot have")] {
        std::fs::write(&file, text).unwrap();
        let url = "http://127.0.0.1:9".to_owned();
        let options = OrsOptions { url, token_file: Some(file.clone()), ..OrsOptions::default() };
        let error = ors_tasks(&options).expect_err("no token");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_asked() {
    let url = "http://127.0.0.1:9".to_owned();
    let ors = |options: OrsOptions| ors_tasks(&options).expect_err("refused").to_string();
    let error = ors(OrsOptions::default());
    assert_eq!(error, "cannot set up ors: set `url` to the address of an ORS server");
    let error = ors(OrsOptions { url: "ftp://a".to_owned(), ..OrsOptions::default() });
    assert!(error.contains("neither http nor https"), "{error}");
    let error = ors(OrsOptions { url: url.clone(), timeout_s: 0.0, ..OrsOptions::default() });
    assert!(error.contains("`timeout_s` is 0"), "{error}");
    let range = OrsOptions {
        url: url.clone(),
        reward_min: Some(1.0),
        reward_max: Some(0.0),
        ..OrsOptions::default()
    };
    assert!(ors(range).contains("`reward_min` 1 is not below `reward_max` 0"));
    let absent = OrsOptions { url, ready_timeout_s: 0.6, ..OrsOptions::default() };
    let error = ors(absent);
    assert!(error.contains("was not ready after 0.6 s"), "{error}");
    let error = openenv_tasks(&OpenEnvOptions::default()).expect_err("refused").to_string();
    assert_eq!(error, "cannot set up openenv: set `url` to the address of an OpenEnv server");
}
