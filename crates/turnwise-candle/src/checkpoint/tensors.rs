use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use turnwise_rollout::Meter;

use super::Precision;
use super::files::{TensorFile, open_all};
use crate::ModelError;
use crate::error::brief;
use crate::finite::{describe, first_not_finite};
use crate::layout::Spec;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The tensors of a checkpoint, by name and shape.
#[derive(Debug)]
pub(crate) struct Tensors {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// The mismatches found so far.
    problems: Vec<String>,
}

/// The values of a parameter, and their format in the file.
#[derive(Clone, Debug)]
pub(crate) struct ParameterValues {
    pub(crate) values: Vec<f32>,
    pub(crate) precision: Precision,
}

/// The place of a tensor.
#[derive(Clone, Debug)]
struct Place {
    file: usize,
    info: TensorInfo,
    precision: Precision,
}

/// The places of all parameters' tensors.
#[derive(Debug)]
struct TensorLocations {
    /// The tensors of each parameter, in order.
    parameters: Vec<Vec<Place>>,
    /// A stored head of a model whose head is the embedding.
    spare_head: Option<Place>,
}

impl Place {
    fn bytes(&self) -> u64 {
        let (start, end) = self.info.data_offsets;
        (end - start) as u64
    }
}

impl TensorLocations {
    /// Returns the bytes of all parameters.
    fn bytes(&self) -> u64 {
        self.parameters.iter().flatten().map(Place::bytes).sum()
    }
}

impl Tensors {
    /// Opens `model.safetensors`, or the shards that an index names.
    pub(crate) fn in_directory(directory: &Path) -> Result<Self, ModelError> {
        let (files, problems) = open_all(directory)?;
        Ok(Self { path: directory.to_owned(), files, problems })
    }

    /// Opens one file.
    pub(crate) fn in_file(path: &Path) -> Result<Self, ModelError> {
        let files = vec![TensorFile::open(path)?];
        Ok(Self { path: path.to_owned(), files, problems: Vec::new() })
    }

    /// Drops the parts of a model for text and images that are for images, and gives the others the names that they have
    /// in a model for text alone.
    pub(crate) fn text_part(mut self) -> Self {
        const IMAGES: [&str; 2] = ["vision_tower.", "multi_modal_projector."];
        for file in &mut self.files {
            let tensors =
                std::mem::take(&mut file.tensors).into_iter().filter_map(|(name, info)| {
                    let short = name.strip_prefix("model.").unwrap_or(&name);
                    if IMAGES.iter().any(|part| short.starts_with(part)) {
                        return None;
                    }
                    let Some(own) = short.strip_prefix("language_model.") else {
                        return Some((name, info));
                    };
                    let is_complete = own.starts_with("model.") || own.starts_with("lm_head.");
                    let own = if is_complete { own.to_owned() } else { format!("model.{own}") };
                    Some((own, info))
                });
            file.tensors = tensors.collect();
        }
        self
    }

    /// Returns the shape of the tensor with this name, if it exists.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.iter().find_map(|file| file.tensors.get(name)).map(|info| &info.shape[..])
    }

    /// Iterates over the names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| file.tensors.keys()).map(String::as_str)
    }

    /// Returns the number of tensors.
    pub(crate) fn len(&self) -> usize {
        self.files.iter().map(|file| file.tensors.len()).sum()
    }

    /// Reads the parameters in the order of `specs`, each directly into its place.
    ///
    /// Reads nothing if a tensor is missing, unknown or of another shape. Redundant tensors are accepted: rotary
    /// frequencies, which older exporters stored, and the head of a tied model if it equals the embedding. `meter`
    /// counts the bytes.
    pub(crate) fn read(
        mut self,
        specs: &[Spec],
        meter: &Meter,
    ) -> Result<Vec<ParameterValues>, ModelError> {
        let plan = self.plan(specs)?;
        meter.begin(Meter::BYTES, plan.bytes());
        let mut parameters = Vec::with_capacity(specs.len());
        for (spec, places) in specs.iter().zip(plan.parameters) {
            let mut values = Vec::with_capacity(spec.len());
            for (name, place) in spec.tensor_names().zip(&places) {
                self.read_finite(&name, place, &mut values)?;
                meter.advance(place.bytes());
            }
            let precisions = places.iter().map(|place| place.precision);
            let precision = precisions.reduce(|a, b| if a == b { a } else { Precision::Single });
            let precision = precision.unwrap_or(Precision::Single);
            parameters.push(ParameterValues { values, precision });
        }
        if let Some(head) = plan.spare_head {
            let embedding = specs.iter().position(|spec| spec.name == EMBEDDING);
            let embedding = embedding.map_or(&[][..], |index| &parameters[index].values);
            self.compare_head(&head, embedding)?;
        }
        meter.end();
        Ok(parameters)
    }

    /// Returns the place of every tensor, or all mismatches.
    fn plan(&mut self, specs: &[Spec]) -> Result<TensorLocations, ModelError> {
        let wanted = WantedTensors::of(specs);
        let parameters = specs.iter().map(|spec| vec![None; spec.n_tensors()]).collect();
        let mut found = Found { parameters, spare_head: None };
        let mut seen = HashSet::new();
        // A tensor with a problem is not reported as missing too.
        let mut wrong = HashSet::new();
        for (file, contents) in self.files.iter().enumerate() {
            for (name, info) in &contents.tensors {
                if !seen.insert(name) {
                    self.problems.push(format!("{} is in more than one file", brief(name)));
                } else if let Err(problem) = wanted.put(name, info, file, &mut found) {
                    wrong.extend(wanted.parts_of(name));
                    self.problems.push(problem);
                }
            }
        }
        found.take_lone_head(specs);
        for (index, spec) in specs.iter().enumerate() {
            let places = &found.parameters[index];
            let missing = spec.tensor_names().zip(places).filter(|(_, place)| place.is_none());
            let missing = missing.map(|(name, _)| name).filter(|name| !wrong.contains(name));
            let shape = spec.tensor_shape();
            self.problems.extend(missing.map(|name| match name.as_str() {
                HEAD => format!(
                    "{HEAD} {shape:?} is missing; if the model's head is its embedding, set tie_word_embeddings to true in config.json"
                ),
                _ => format!("{name} {shape:?} is missing"),
            }));
        }
        if !self.problems.is_empty() {
            let problems = grouped(std::mem::take(&mut self.problems));
            return Err(ModelError::Mismatch { directory: self.path.clone(), problems });
        }
        let parameters = found.parameters.into_iter();
        let parameters = parameters.map(|places| places.into_iter().flatten().collect());
        Ok(TensorLocations { parameters: parameters.collect(), spare_head: found.spare_head })
    }

    /// Appends the numbers of a tensor, and rejects the first that is NaN or infinite.
    fn read_finite(
        &mut self,
        name: &str,
        Place { file, info, precision }: &Place,
        values: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let (start, mut wrong) = (values.len(), None);
        self.files[*file].read(info, *precision, |piece| {
            let index = values.len() - start;
            wrong = wrong.or_else(|| Some(index + first_not_finite(piece)?));
            values.extend_from_slice(piece);
        })?;
        let Some(index) = wrong else { return Ok(()) };
        let action = format!("load the weights in {}", self.path.display());
        let reason = describe(name, &info.shape, index, values[start + index]);
        Err(ModelError::NotFinite { action, reason })
    }

    fn compare_head(&mut self, head: &Place, embedding: &[f32]) -> Result<(), ModelError> {
        let (mut rest, mut n_different) = (embedding, 0);
        self.files[head.file].read(&head.info, head.precision, |piece| {
            let (same, after) = rest.split_at(piece.len());
            n_different += same.iter().zip(piece).filter(|(a, b)| a != b).count();
            rest = after;
        })?;
        if n_different == 0 {
            return Ok(());
        }
        let problem = format!(
            "{HEAD} {:?} differs from {EMBEDDING} in {n_different} numbers, but tie_word_embeddings says that they are equal",
            head.info.shape
        );
        Err(ModelError::Mismatch { directory: self.path.clone(), problems: vec![problem] })
    }
}

/// The tensors that make up the parameters, by name.
struct WantedTensors<'a> {
    /// The shape, the parameter, and the index of the tensor in it.
    tensors: HashMap<String, (&'a [usize], usize, usize)>,
}

/// The places of tensors, as far as they were found.
struct Found {
    parameters: Vec<Vec<Option<Place>>>,
    spare_head: Option<Place>,
}

/// The stacked tensors in which transformers 5 holds all experts of a layer, with the matrices in each: up follows
/// gate.
const FUSED: [(&str, &[&str]); 2] =
    [("gate_up_proj", &["gate_proj", "up_proj"]), ("down_proj", &["down_proj"])];

impl Found {
    /// Uses the head of a tied model as its embedding, if the file stores the matrix under the head's name only.
    fn take_lone_head(&mut self, specs: &[Spec]) {
        let embedding = specs.iter().position(|spec| spec.name == EMBEDDING);
        let Some(embedding) = embedding.map(|index| &mut self.parameters[index]) else { return };
        if let [place @ None] = &mut embedding[..] {
            *place = self.spare_head.take();
        }
    }
}

impl<'a> WantedTensors<'a> {
    fn of(specs: &'a [Spec]) -> Self {
        let tensors = specs.iter().enumerate().flat_map(|(index, spec)| {
            let names = spec.tensor_names().enumerate();
            names.map(move |(part, name)| (name, (spec.tensor_shape(), index, part)))
        });
        Self { tensors: tensors.collect() }
    }

    /// Returns the names of the tensors that a tensor contains.
    fn parts_of(&self, name: &str) -> Vec<String> {
        match self.fused(name) {
            Some(fused) => fused.experts.into_iter().flatten().collect(),
            None => vec![name.to_owned()],
        }
    }

    /// Returns the contents of a tensor with all experts of a layer, if one of this name is wanted.
    fn fused(&self, name: &str) -> Option<Fused<'a>> {
        let (module, tensor) = name.rsplit_once('.')?;
        let (_, parts) = FUSED.into_iter().find(|(fused, _)| *fused == tensor)?;
        let expert = |index: usize| -> Option<Vec<String>> {
            let names = parts.iter().map(|part| format!("{module}.{index}.{part}.weight"));
            let names: Vec<String> = names.collect();
            names.iter().all(|name| self.tensors.contains_key(name)).then_some(names)
        };
        let experts: Vec<Vec<String>> = (0..).map_while(expert).collect();
        let (shape, ..) = self.tensors[experts.first()?.first()?];
        Some(Fused { shape, experts })
    }

    /// Records the places of a layer's experts inside one tensor.
    fn put_fused(
        &self,
        name: &str,
        info: &TensorInfo,
        file: usize,
        fused: &Fused<'_>,
        found: &mut Found,
    ) -> Result<(), String> {
        let Fused { shape, experts } = fused;
        let n_parts = experts[0].len();
        let [rows, width] = **shape else { return Err(format!("{name} is not a matrix")) };
        let whole = place(name, info, &[experts.len(), n_parts * rows, width], file)?;
        let size = rows * width * whole.precision.width();
        for (number, part) in experts.iter().flatten().enumerate() {
            let start = info.data_offsets.0 + number * size;
            let (_, index, place) = self.tensors[part];
            let info = TensorInfo {
                shape: shape.to_vec(),
                data_offsets: (start, start + size),
                dtype: info.dtype,
            };
            let part = Place { file, info, precision: whole.precision };
            if found.parameters[index][place].replace(part).is_some() {
                return Err(format!("{name} is stored twice: stacked, and expert by expert"));
            }
        }
        Ok(())
    }

    /// Records the place of a tensor, or why it does not fit.
    fn put(
        &self,
        name: &str,
        info: &TensorInfo,
        file: usize,
        found: &mut Found,
    ) -> Result<(), String> {
        if let Some((shape, index, part)) = self.tensors.get(name) {
            let place = place(name, info, shape, file)?;
            if found.parameters[*index][*part].replace(place).is_some() {
                return Err(format!(
                    "{name} is stored twice: alone, and in a tensor of all experts"
                ));
            }
            return Ok(());
        }
        if let Some(fused) = self.fused(name) {
            return self.put_fused(name, info, file, &fused, found);
        }
        match self.tensors.get(EMBEDDING) {
            Some((shape, ..)) if name == HEAD => {
                found.spare_head = Some(place(name, info, shape, file)?);
                Ok(())
            }
            _ if name.ends_with("rotary_emb.inv_freq") => Ok(()),
            _ => Err(format!(
                "{} {} is not a part of it",
                brief(name),
                brief(format!("{:?}", info.shape))
            )),
        }
    }
}

/// All experts of a layer in one tensor.
struct Fused<'a> {
    /// The shape of one matrix of one expert.
    shape: &'a [usize],
    /// The names of the matrices of each expert.
    experts: Vec<Vec<String>>,
}

/// Merges the problems of tensors that differ only in the numbers of layers and experts, and limits them to a screen.
pub(crate) fn grouped(problems: Vec<String>) -> Vec<String> {
    const MOST: usize = 16;
    let mut groups: Vec<(String, usize)> = Vec::new();
    let mut places = HashMap::new();
    for problem in problems {
        let pattern: Vec<&str> = problem
            .split('.')
            .map(|part| if part.parse::<u64>().is_ok() { "*" } else { part })
            .collect();
        match places.entry(pattern.join(".")) {
            Entry::Occupied(place) => {
                let (_, count): &mut (String, usize) = &mut groups[*place.get()];
                *count += 1;
            }
            Entry::Vacant(place) => {
                place.insert(groups.len());
                groups.push((problem, 1));
            }
        }
    }
    let rest: usize = groups.iter().skip(MOST).map(|(_, count)| count).sum();
    let mut shown: Vec<String> = groups
        .into_iter()
        .take(MOST)
        .map(|(problem, count)| match count {
            1 => problem,
            _ => format!("{problem} (and {} more tensors like it)", count - 1),
        })
        .collect();
    if rest > 0 {
        shown.push(format!("and {rest} more"));
    }
    shown
}

/// Returns the place of a tensor with this shape, or why it cannot be used.
fn place(name: &str, info: &TensorInfo, shape: &[usize], file: usize) -> Result<Place, String> {
    if info.shape != shape {
        let is = brief(format!("{:?}", info.shape));
        return Err(format!("{name} is {is} and must be {shape:?}"));
    }
    match Precision::of(info.dtype) {
        Some(precision) => Ok(Place { file, info: info.clone(), precision }),
        None => Err(format!("{name} is {:?}; F32, BF16 and F16 are supported", info.dtype)),
    }
}
