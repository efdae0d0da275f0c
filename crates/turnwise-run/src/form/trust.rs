//! Which chat templates are trusted: a template is a program, and decides what a model reads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use turnwise_chat::{Trust, template_hash};

use super::files::Templates;
use crate::failure::Failure;

/// Published templates, each with the first half of its hash and a repository that has it. All were rendered with ten
/// conversations, and compared with transformers.
const KNOWN: &str = include_str!("known_templates.txt");

/// Returns the repository of a published template.
pub(super) fn published(template: &str) -> Option<&'static str> {
    let hash = template_hash(template);
    KNOWN
        .lines()
        .find_map(|line| line.split_once(' ').filter(|(known, _)| hash.starts_with(known)))
        .map(|(_, repository)| repository)
}

/// Returns how a user trusts a template with a hash, in the words of the command at hand.
pub type Trusting = fn(&str) -> String;

/// Returns the trust in a model's templates, or a refusal that says how to trust them. A hash that the user gives is
/// remembered, so that it is asked for once.
pub(super) fn trusted(
    directory: &Path,
    templates: &Templates,
    trust: Option<&str>,
    trusting: Trusting,
) -> Result<Trust, Failure> {
    let place = STORE.get();
    let trust = trust.map(|hash| hash.trim().to_ascii_lowercase());
    let trust = trust.as_deref();
    let remembered = place.and_then(|place| fs::read_to_string(place).ok());
    let is_remembered = |hash: &str| {
        remembered.as_deref().is_some_and(|text| text.lines().any(|line| line == hash))
    };
    let all = [Some(&templates.usual), templates.tool_use.as_ref()];
    let is_known = |template: &&String| {
        published(template).is_some() || is_remembered(&template_hash(template))
    };
    let what = match trust {
        Some(hash) if templates.has(hash) => {
            let hashes = all.into_iter().flatten().map(|template| template_hash(template));
            for hash in hashes.filter(|hash| !is_remembered(hash)) {
                if let Some(place) = place {
                    remember(place, &hash);
                }
            }
            return Ok(Trust::Hash(hash.to_owned()));
        }
        Some(other) => {
            format!("the template of {} is not the one with hash {other}", directory.display())
        }
        None if all.into_iter().flatten().all(|template| is_known(&template)) => {
            return Ok(Trust::Any);
        }
        None => format!(
            "the template of {} is a program, and nobody has said that it is trusted",
            directory.display()
        ),
    };
    let read = if templates.tool_use.is_some() {
        "read it, and `tool_use` beside it, which the same hash covers, then"
    } else {
        "read it, then"
    };
    Err(Failure::refused(what).help(format!("{read}  {}", trusting(&templates.hash()))))
}

/// The file of the hashes that the user has trusted, if the program keeps one.
static STORE: OnceLock<PathBuf> = OnceLock::new();

/// Keeps the hashes of trusted templates in a file, from which later processes read them. Without it, a template that is
/// not published is refused each time that its hash is not given. The first call of a process counts.
pub fn remember_trust_in(file: PathBuf) {
    let _ = STORE.set(file);
}

/// Appends a hash. Where the file cannot be written, the hash is asked for again.
fn remember(place: &Path, hash: &str) {
    let Some(directory) = place.parent() else { return };
    let written = fs::create_dir_all(directory)
        .and_then(|()| fs::OpenOptions::new().create(true).append(true).open(place))
        .and_then(|mut file| writeln!(file, "{hash}"));
    if let Err(error) = written {
        tracing::warn!("cannot remember the trust in {}: {error}", place.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_templates_are_listed_once_and_by_hash() {
        let mut hashes: Vec<&str> =
            KNOWN.lines().map(|line| line.split_once(' ').expect("a hash and a name").0).collect();
        let n = hashes.len();
        assert!(n > 700 && hashes.iter().all(|hash| hash.len() == 32), "{n}");
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), n);
        assert_eq!(published("{{ messages }}"), None);
    }
}
