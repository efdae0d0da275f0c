//! `turnwise serve`: an environment for the trainers of others.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use turnwise_environment::Suite;
use turnwise_rollout::Limits;
use turnwise_run::form::{Source, trust_by_flag};
use turnwise_run::{Failure, Registry, from_arguments, locate_model};
use turnwise_serve::{
    BindError, EnvironmentServer, Protocol, RewardForm, ServerSettings, VerifiersServer,
    VerifiersSettings,
};

use crate::arguments::{ProtocolName, RewardName, ServeArguments};
use crate::interrupt;

/// Serves an environment until the process is asked to stop.
///
/// # Errors
/// When the environment does not exist, the token or the model cannot be read, or nothing can listen at the address.
pub(crate) async fn serve(registry: &Registry, arguments: &ServeArguments) -> Result<(), Failure> {
    let suite = registry.suite(&arguments.env, &from_arguments(&arguments.options)?)?;
    match arguments.protocol {
        ProtocolName::Ors => serve_calls(suite, Protocol::Ors, arguments).await,
        ProtocolName::Openenv => serve_calls(suite, Protocol::OpenEnv, arguments).await,
        ProtocolName::Verifiers => serve_episodes(suite, arguments).await,
    }
}

/// Serves an environment whose clients take its steps.
async fn serve_calls(
    suite: Suite,
    protocol: Protocol,
    arguments: &ServeArguments,
) -> Result<(), Failure> {
    let reward_form = match arguments.reward {
        RewardName::Turn => RewardForm::Turn,
        RewardName::Total => RewardForm::Total,
    };
    let settings = ServerSettings {
        address: arguments.address,
        reward_form,
        token: arguments.token_file.as_deref().map(token).transpose()?,
        ..ServerSettings::new(protocol)
    };
    let name = suite.name().to_owned();
    let server = EnvironmentServer::bind(settings, suite).await.map_err(|error| refused(&error))?;
    let mut lines = ready(&name, &server.url());
    if let (None, Some(token)) = (&arguments.token_file, server.token()) {
        lines.push_str("clients send this token as their API key: ");
        lines.push_str(token);
        lines.push('\n');
    }
    say_and_wait(&lines).await;
    Ok(())
}

/// Serves whole episodes, with the tokens of a model's form.
async fn serve_episodes(suite: Suite, arguments: &ServeArguments) -> Result<(), Failure> {
    if arguments.token_file.is_some() {
        return Err(Failure::refused(
            "clients of verifiers send no token, so that --token-file protects nothing",
        )
        .help("leave it out, and listen on this machine or in a private network"));
    }
    let model = arguments.model.as_deref().unwrap_or(Path::new("."));
    let source = Source::of_model(&locate_model(model)?, None)?;
    let form = source.form(&source.wanted(), trust_by_flag)?;
    let n = arguments.context_tokens;
    let limits = Limits {
        max_context_tokens: n,
        max_sampled_tokens: n,
        max_turn_tokens: 2_048.min(n),
        max_turns: 64,
        ..Limits::default()
    };
    let settings = VerifiersSettings {
        address: arguments.address,
        limits,
        key_variables: arguments.key_variable.clone(),
        ..VerifiersSettings::default()
    };
    let name = suite.name().to_owned();
    let server = VerifiersServer::bind(settings, suite, form.renderer).await;
    let server = server.map_err(|error| refused(&error))?;
    say_and_wait(&ready(&name, &server.url())).await;
    Ok(())
}

fn token(file: &Path) -> Result<String, Failure> {
    let read = fs::read_to_string(file).map(|text| text.trim().to_owned());
    let read = read
        .map_err(|error| error.to_string())
        .and_then(|token| if token.is_empty() { Err("it is empty".to_owned()) } else { Ok(token) });
    read.map_err(|why| {
        Failure::refused(format!("cannot read the token in {}: {why}", file.display()))
    })
}

fn refused(error: &BindError) -> Failure {
    Failure::refused_by(error).help("choose another with --address 127.0.0.1:PORT")
}

fn ready(name: &str, url: &str) -> String {
    format!("{name} at {url}; Ctrl-C ends it\n")
}

async fn say_and_wait(lines: &str) {
    let mut out = io::stdout();
    // Whoever started it may not read what it says.
    drop(out.write_all(lines.as_bytes()).and_then(|()| out.flush()));
    interrupt::listen().wait().await;
}
