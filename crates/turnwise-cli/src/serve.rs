//! `turnwise serve`: an environment for the trainers of others.

use std::fs;
use std::io::{self, Write};

use turnwise_run::{Failure, Registry, from_arguments};
use turnwise_serve::{EnvironmentServer, Protocol, RewardForm, ServerSettings};

use crate::arguments::{ProtocolName, RewardName, ServeArguments};
use crate::interrupt;

/// Serves an environment until the process is asked to stop.
///
/// # Errors
/// When the environment does not exist, the token cannot be read, or nothing can listen at the address.
pub(crate) async fn serve(registry: &Registry, arguments: &ServeArguments) -> Result<(), Failure> {
    let suite = registry.suite(&arguments.env, &from_arguments(&arguments.options)?)?;
    let protocol = match arguments.protocol {
        ProtocolName::Ors => Protocol::Ors,
        ProtocolName::Openenv => Protocol::OpenEnv,
    };
    let reward_form = match arguments.reward {
        RewardName::Turn => RewardForm::Turn,
        RewardName::Total => RewardForm::Total,
    };
    let token = arguments.token_file.as_ref().map(|file| {
        let read = fs::read_to_string(file).map(|text| text.trim().to_owned());
        let read = read.map_err(|error| error.to_string());
        let read =
            read.and_then(
                |token| if token.is_empty() { Err("it is empty".to_owned()) } else { Ok(token) },
            );
        read.map_err(|why| {
            Failure::refused(format!("cannot read the token in {}: {why}", file.display()))
        })
    });
    let settings = ServerSettings {
        address: arguments.address,
        reward_form,
        token: token.transpose()?,
        ..ServerSettings::new(protocol)
    };
    let name = suite.name().to_owned();
    let server = EnvironmentServer::bind(settings, suite).await;
    let server = server.map_err(|error| {
        Failure::refused_by(&error).help("choose another with --address 127.0.0.1:PORT")
    })?;
    let mut out = io::stdout();
    let mut shown = writeln!(out, "{name} at {}; Ctrl-C ends it", server.url());
    if let (None, Some(token)) = (&arguments.token_file, server.token()) {
        shown =
            shown.and_then(|()| writeln!(out, "clients send this token as their API key: {token}"));
    }
    // Whoever started it may not read what it says.
    drop(shown.and_then(|()| out.flush()));
    interrupt::listen().wait().await;
    Ok(())
}
