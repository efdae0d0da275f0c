//! `score`: log-probabilities of given tokens.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use turnwise::candle::{Decoder, Device, ModelError, locate};

use crate::failure::Failure;
use crate::say;

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
}

#[derive(Serialize)]
struct Output {
    logprobs: Vec<f32>,
}

/// Reads `{"ids": […]}` a line and prints `{"logprobs": […]}`; position t is the log-probability of `ids[t + 1]`.
pub(crate) fn score(model: &Path, input: &Path, device: Device) -> Result<(), Failure> {
    let lines = read(input)?;
    let place = |number: usize| format!("    in line {number} of {}", input.display());
    let sequences = lines
        .iter()
        .map(|(number, line)| parse(*number, line).map_err(|failure| failure.at(place(*number))))
        .collect::<Result<Vec<_>, _>>()?;
    let decoder = locate(model).and_then(|directory| Decoder::from_directory(&directory));
    let decoder = decoder.and_then(|decoder| decoder.with_device(device));
    let decoder = decoder.map_err(|error| Failure::refused_by(&error))?;
    for ((number, _), ids) in lines.iter().zip(&sequences) {
        // One line at a time: what is printed before a line that is wrong stays right.
        let scored = decoder.score(std::slice::from_ref(ids)).map_err(|error| match error {
            ModelError::NotFinite { .. } => Failure::refused_by(&error),
            _ => Failure::refused(format!("line {number}: {error}"))
                .at(place(*number))
                .help("use ids of this model's own tokenizer"),
        })?;
        for logprobs in scored {
            let json = serde_json::to_string(&Output { logprobs })
                .map_err(|error| Failure::runtime(&error))?;
            say(&(json + "\n"))?;
        }
    }
    Ok(())
}

/// The lines that are not blank, with their numbers from 1.
fn read(input: &Path) -> Result<Vec<(usize, String)>, Failure> {
    let text = if input == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(input)
    };
    let text = text
        .map_err(|error| Failure::refused(format!("cannot read {}: {error}", input.display())))?;
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(numbered.map(|(index, line)| (index + 1, line.to_owned())).collect())
}

fn parse(number: usize, line: &str) -> Result<Vec<u32>, Failure> {
    serde_json::from_str(line).map(|input: Input| input.ids).map_err(|error| {
        Failure::refused(format!("line {number} is not {{\"ids\": […]}}: {error}"))
            .help("each line is an object with token ids, as in  {\"ids\": [1, 2, 3]}")
    })
}
