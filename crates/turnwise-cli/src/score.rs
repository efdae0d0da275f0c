//! `turnwise score`: log-probabilities of given tokens.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use turnwise_candle::{Device, ModelError};
use turnwise_rollout::{Meter, StopSignal};

use crate::say;
use crate::screen::{Screen, Style};
use turnwise_run::{Failure, Watched, load_model, locate_model, watch};

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
}

#[derive(Serialize)]
struct Output {
    logprobs: Vec<f32>,
}

/// Reads one `{"ids": […]}` per line and prints `{"logprobs": […]}`; position t is the log-probability of `ids[t + 1]`.
pub(crate) async fn score(model: &Path, input: &Path, device: Device) -> Result<(), Failure> {
    let lines = read(input)?;
    let place = |number: usize| format!("    in line {number} of {}", input.display());
    let sequences = lines
        .iter()
        .map(|(number, line)| parse(*number, line).map_err(|failure| failure.at(place(*number))))
        .collect::<Result<Vec<_>, _>>()?;
    // To standard error: standard output has the result.
    let mut screen = Screen::new(io::stderr(), Style::of_errors());
    let decoder =
        load_model(&locate_model(model)?, None, &mut screen, &StopSignal::never()).await?;
    let decoder = decoder.with_device(device).map_err(|error| Failure::refused_by(&error))?;
    let (decoder, meter) = (Arc::new(decoder), Meter::default());
    let scoring = async {
        meter.begin("lines", lines.len() as u64);
        // One line at a time: results before an invalid line stay valid.
        for ((number, _), ids) in lines.iter().zip(sequences) {
            let decoder = decoder.clone();
            let scored = spawn_blocking(move || decoder.score(&[ids])).await;
            let scored = scored.map_err(|error| Failure::runtime(&error))?;
            let scored = scored.map_err(|error| match error {
                ModelError::NotFinite { .. } => Failure::refused_by(&error),
                _ => Failure::refused(format!("line {number}: {error}")).at(place(*number)).help(
                    match error {
                        ModelError::TooLong { max_positions, .. } => {
                            format!("split the line into ones of at most {max_positions} ids")
                        }
                        _ => "use ids of this model's own tokenizer".to_owned(),
                    },
                ),
            })?;
            for logprobs in scored {
                let json = serde_json::to_string(&Output { logprobs })
                    .map_err(|error| Failure::runtime(&error))?;
                say(&(json + "\n"))?;
            }
            meter.advance(1);
        }
        Ok(())
    };
    let watched = Watched { what: "scoring", meters: std::slice::from_ref(&meter) };
    watch(&mut screen, watched, &StopSignal::never(), scoring).await
}

/// The largest input: an endless one would fill the memory.
const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Returns the lines that are not blank, with their numbers from 1.
fn read(input: &Path) -> Result<Vec<(usize, String)>, Failure> {
    let text = if input == Path::new("-") {
        bounded(io::stdin())
    } else {
        File::open(input).and_then(bounded)
    };
    let text = text
        .map_err(|error| Failure::refused(format!("cannot read {}: {error}", input.display())))?;
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(numbered.map(|(index, line)| (index + 1, line.to_owned())).collect())
}

/// Reads all of an input, unless it is too long.
fn bounded(input: impl Read) -> io::Result<String> {
    let mut text = String::new();
    input.take(MAX_INPUT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_INPUT_BYTES {
        return Err(io::Error::other("it has more than 1 GiB; split it into several files"));
    }
    Ok(text)
}

fn parse(number: usize, line: &str) -> Result<Vec<u32>, Failure> {
    serde_json::from_str(line).map(|input: Input| input.ids).map_err(|error| {
        Failure::refused(format!("line {number} is not {{\"ids\": […]}}: {error}"))
            .help("each line is an object with token ids, as in  {\"ids\": [1, 2, 3]}")
    })
}
