//! The turnwise command: train, evaluate, play and inspect.

mod advice;
mod arguments;
mod bench;
mod config;
mod curve;
mod engine;
mod environments;
mod estimate;
mod evaluate;
mod failure;
mod form;
mod interrupt;
mod lab;
mod log;
mod play;
mod render;
mod resume;
mod run;
mod score;
mod screen;
mod session;
mod simulate;
mod threads;
mod train;
mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process;

use arguments::{Arguments, Command, EnvCommand};
use clap::Parser;
use config::Loaded;
use failure::Failure;

/// It asks the system for large pages: with the system's own allocator a training step took 1.3 to 1.5 times as long and
/// drawing 1.2 to 1.4 times.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    #[cfg(feature = "gguf")]
    engine::keep_products_together();
    let arguments = Arguments::parse();
    log::to_stderr();
    if let Err(failure) = Box::pin(run(arguments.command)).await {
        // Where nobody reads, there is nobody to tell.
        let _ = write!(io::stderr(), "{failure}");
        process::exit(failure.code as i32);
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Try(arguments) => train::try_it(&arguments).await,
        Command::Train { config, run } => train::train(&config, &run).await,
        Command::Resume { run_dir, json, steps } => {
            Box::pin(resume::resume(&run_dir, json, steps)).await
        }
        Command::Config { settings, model } => print_config(&settings, model.as_deref()),
        Command::Eval(arguments) => evaluate::evaluate(&arguments).await,
        Command::Render(arguments) => render::render(&arguments).await,
        Command::Score { model, input, device } => score::score(&model, &input, device).await,
        Command::Env { command: EnvCommand::List } => environments::list(&mut io::stdout()).await,
        Command::Env { command: EnvCommand::Check { name, options } } => {
            environments::check(&name, &options, &mut io::stdout()).await
        }
        Command::Lab { command } => lab::run(&command, &mut io::stdout()).await,
        Command::Simulate(arguments) => apart(move || simulate::simulate_seeds(&arguments)).await,
        Command::Bench { command } => apart(move || bench::bench(&command)).await,
        Command::Play { env, task, seed, held_out, options } => {
            play::run(&env, &options, seed, task, held_out).await
        }
    }
}

/// Runs what makes runtimes of its own, which it may not inside this one.
async fn apart(work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::runtime(&error)),
    }
}

/// Settings as they would be used: the defaults, or those of a file, of a model, of arguments.
fn print_config(settings: &[String], model: Option<&Path>) -> Result<(), Failure> {
    let (arguments, files): (Vec<String>, Vec<String>) =
        settings.iter().cloned().partition(|setting| setting.contains('='));
    let directory = model.map(|model| {
        let name = toml_edit::Value::from(model.to_string_lossy().into_owned());
        format!("model.directory={name}")
    });
    let overrides: Vec<String> = directory.into_iter().chain(arguments).collect();
    let Loaded { mut config, .. } = match files.as_slice() {
        [] => config::parse("the arguments", "", &overrides)?,
        [file] => config::load(Path::new(file), &overrides)?,
        [_, second, ..] => {
            return Err(Failure::refused(format!("cannot read `{second}`"))
                .help("name one file, and settings as TABLE.KEY=VALUE"));
        }
    };
    session::resolve_form(&mut config)?;
    say(&config::listing(&config)?)
}

/// Prints; a reader that went away is no failure.
fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::runtime(&error)),
        _ => Ok(()),
    }
}
