//! The `turnwise` command as a library: arguments and terminal screens over `turnwise-run`.
//!
#![doc = include_str!("../README.md")]
//!
//! A program with its own environments calls [`main`] with a [`Registry`] that contains them; every command of
//! `turnwise` then works with them.

mod arguments;
mod bench;
mod curve;
mod doctor;
mod environments;
mod evaluate;
mod interrupt;
mod lab;
mod log;
mod play;
mod render;
mod score;
mod screen;
mod serve;
mod show;
mod simulate;
mod worker;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use clap::{CommandFactory, FromArgMatches};
use turnwise_candle::allocator::{Allocator, commit_as_used};
use turnwise_run::config::{self, Loaded, listing};
use turnwise_run::{ExitCode, Failure, Registry, resolve_form};

use arguments::{Arguments, Command, EnvCommand, RunArguments};
use screen::{Screen, Style};

/// It requests large pages: with the system's allocator, a training step took 1.3 to 1.5 times as long and sampling 1.2
/// to 1.4 times.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Runs the command of the program's arguments, with the environments of a registry, and returns its exit code.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use turnwise_run::Registry;
///
/// fn main() -> ExitCode {
///     turnwise_cli::main(Registry::builtin())
/// }
/// ```
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "the last line of a program")]
pub fn main(registry: Registry) -> process::ExitCode {
    commit_as_used();
    #[cfg(feature = "gguf")]
    turnwise_run::keep_products_together();
    let arguments = parse();
    log::to_stderr();
    if let Some(state) = state_directory() {
        turnwise_run::form::remember_trust_in(state.join("trusted_templates"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(run(arguments.command, &registry))),
        Err(error) => Err(Failure::runtime(&error)),
    };
    let Err(failure) = result else { return process::ExitCode::SUCCESS };
    // A closed standard error cannot show the failure.
    let _ = write!(io::stderr(), "{failure}");
    let code = match failure.code {
        ExitCode::Interrupted => interrupt::exit_code(),
        code => code,
    };
    process::ExitCode::from(code as u8)
}

/// Returns the directory of what the command remembers from run to run.
fn state_directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = set("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(set("HOME")?).join(".local/state")))?;
    Some(state.join("turnwise"))
}

/// Parses the arguments; the help uses the name that the program was started with.
fn parse() -> Arguments {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let command = match name {
        Some(name) => Arguments::command().bin_name(name),
        None => Arguments::command(),
    };
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

async fn run(command: Command, registry: &Registry) -> Result<(), Failure> {
    match command {
        Command::Try(arguments) => {
            let settings = turnwise_run::try_settings(registry, &arguments.all_overrides())?;
            train(settings, "try", &arguments, registry).await
        }
        Command::Train { config, run } => {
            let settings = turnwise_run::load(&config, &run.all_overrides(), registry)?;
            let name = config.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            train(settings, name.as_deref().unwrap_or("run"), &run, registry).await
        }
        Command::Resume { run_dir, json, steps } => {
            let mut screen = Screen::new(io::stdout(), Style::detect(json, false));
            let stop = interrupt::listen();
            let resumed = turnwise_run::resume(&run_dir, steps, registry, &mut screen, &stop);
            Box::pin(resumed).await.map(|_| ())
        }
        Command::Config { settings, model } => print_config(&settings, model.as_deref(), registry),
        Command::Eval(arguments) => Box::pin(evaluate::evaluate(&arguments, registry)).await,
        Command::Doctor { run_dir, json } => doctor::doctor(&run_dir, json),
        Command::Show(arguments) => show::show(&arguments),
        Command::Render(arguments) => render::render(&arguments).await,
        Command::Score { model, input, device } => score::score(&model, &input, device).await,
        Command::Env { command: EnvCommand::List } => {
            environments::list(registry, &mut io::stdout()).await
        }
        Command::Env { command: EnvCommand::New { name, source } } => {
            environments::new(registry, &name, source.as_deref())
        }
        Command::Env { command: EnvCommand::Check { name, options } } => {
            environments::check(registry, &name, &options, &mut io::stdout()).await
        }
        Command::Lab { command } => lab::run(&command, &mut io::stdout()).await,
        Command::Simulate(arguments) => apart(move || simulate::run(&arguments)).await,
        Command::Bench { command } => apart(move || bench::bench(&command)).await,
        Command::Worker(arguments) => worker::work(registry, &arguments).await,
        Command::Serve(arguments) => serve::serve(registry, &arguments).await,
        Command::Play { env, task, seed, held_out, options } => {
            play::run(registry, &env, &options, seed, task, held_out).await
        }
    }
}

async fn train(
    settings: Loaded,
    name: &str,
    arguments: &RunArguments,
    registry: &Registry,
) -> Result<(), Failure> {
    let mut screen = Screen::new(io::stdout(), Style::detect(arguments.json, false));
    let (directory, stop) = (arguments.run_dir.clone(), interrupt::listen());
    let run = turnwise_run::train(settings, name, directory, registry, &mut screen, &stop);
    Box::pin(run).await.map(|_| ())
}

/// Runs work that creates runtimes of its own, which is not possible inside this one.
async fn apart(work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::runtime(&error)),
    }
}

/// Prints settings: the defaults, or those of a file, a model or arguments.
fn print_config(
    settings: &[String],
    model: Option<&Path>,
    registry: &Registry,
) -> Result<(), Failure> {
    let (arguments, files): (Vec<String>, Vec<String>) =
        settings.iter().cloned().partition(|setting| setting.contains('='));
    let directory = model.map(|model| {
        let name = toml_edit::Value::from(model.to_string_lossy().into_owned());
        format!("model.directory={name}")
    });
    let overrides: Vec<String> = directory.into_iter().chain(arguments).collect();
    let Loaded { mut config, .. } = match files.as_slice() {
        [] => config::from_text("the arguments", "", &overrides, registry)?,
        [file] => config::load(Path::new(file), &overrides, registry)?,
        [_, second, ..] => {
            return Err(Failure::refused(format!("cannot read `{second}`"))
                .help("name one file, and settings as TABLE.KEY=VALUE"));
        }
    };
    resolve_form(&mut config)?;
    say(&listing(&config)?)
}

/// Prints a text; a closed output counts as success.
fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::runtime(&error)),
        _ => Ok(()),
    }
}
