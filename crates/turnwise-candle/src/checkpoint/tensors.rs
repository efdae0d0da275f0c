use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;

use super::Precision;
use super::files::{TensorFile, open_all};
use crate::ModelError;
use crate::finite::{describe, first_not_finite};
use crate::layout::Spec;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The tensors of a checkpoint, of which only names and shapes have been read.
#[derive(Debug)]
pub(crate) struct Tensors {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Everything that does not fit so far.
    problems: Vec<String>,
}

/// A parameter's numbers, and how they were written.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) values: Vec<f32>,
    pub(crate) precision: Precision,
}

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Place {
    file: usize,
    info: TensorInfo,
    precision: Precision,
}

/// Where the tensors of the parameters are.
#[derive(Debug)]
struct Plan {
    /// The tensors of each parameter, in order.
    parameters: Vec<Vec<Place>>,
    /// A head that the file holds although it is the embedding.
    spare_head: Option<Place>,
}

impl Tensors {
    /// Those of `model.safetensors`, or of the shards that an index names.
    pub(crate) fn in_directory(directory: &Path) -> Result<Self, ModelError> {
        let (files, problems) = open_all(directory)?;
        Ok(Self { path: directory.to_owned(), files, problems })
    }

    /// Those of one file.
    pub(crate) fn in_file(path: &Path) -> Result<Self, ModelError> {
        let files = vec![TensorFile::open(path)?];
        Ok(Self { path: path.to_owned(), files, problems: Vec::new() })
    }

    /// The shape of a tensor, if there is one of that name.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.iter().find_map(|file| file.tensors.get(name)).map(|info| &info.shape[..])
    }

    /// The parameters in the order of `specs`, each read straight into its place.
    ///
    /// Nothing is read when a tensor is missing, unknown or of another shape. What follows from the configuration may be
    /// there as well: rotary frequencies, which older exporters stored, and the head of a tied model, if it is the same.
    pub(crate) fn read(mut self, specs: &[Spec]) -> Result<Vec<Loaded>, ModelError> {
        let plan = self.plan(specs)?;
        let mut parameters = Vec::with_capacity(specs.len());
        for (spec, places) in specs.iter().zip(plan.parameters) {
            let mut values = Vec::with_capacity(spec.len());
            for (name, place) in spec.tensor_names().zip(&places) {
                self.read_finite(&name, place, &mut values)?;
            }
            let precisions = places.iter().map(|place| place.precision);
            let precision = precisions.reduce(|a, b| if a == b { a } else { Precision::Single });
            let precision = precision.unwrap_or(Precision::Single);
            parameters.push(Loaded { values, precision });
        }
        if let Some(head) = plan.spare_head {
            let embedding = specs.iter().position(|spec| spec.name == EMBEDDING);
            let embedding = embedding.map_or(&[][..], |index| &parameters[index].values);
            self.compare_head(&head, embedding)?;
        }
        Ok(parameters)
    }

    /// Where everything is, or everything that does not fit.
    fn plan(&mut self, specs: &[Spec]) -> Result<Plan, ModelError> {
        let wanted = Wanted::of(specs);
        let parameters = specs.iter().map(|spec| vec![None; spec.n_tensors()]).collect();
        let mut found = Found { parameters, spare_head: None };
        // A tensor that is there but wrong is not missing too.
        let mut seen = HashSet::new();
        for (file, contents) in self.files.iter().enumerate() {
            for (name, info) in &contents.tensors {
                if !seen.insert(name) {
                    self.problems.push(format!("{name} is in more than one file"));
                } else if let Err(problem) = wanted.put(name, info, file, &mut found) {
                    self.problems.push(problem);
                }
            }
        }
        for spec in specs {
            let missing = spec.tensor_names().filter(|name| !seen.contains(name));
            let shape = spec.tensor_shape();
            self.problems.extend(missing.map(|name| format!("{name} {shape:?} is missing")));
        }
        if !self.problems.is_empty() {
            let problems = std::mem::take(&mut self.problems);
            return Err(ModelError::Mismatch { directory: self.path.clone(), problems });
        }
        let parameters = found.parameters.into_iter();
        let parameters = parameters.map(|places| places.into_iter().flatten().collect());
        Ok(Plan { parameters: parameters.collect(), spare_head: found.spare_head })
    }

    /// Appends the numbers of a tensor, and refuses the first that is NaN or infinite.
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
            "{HEAD} {:?} differs from {EMBEDDING} in {n_different} numbers, and tie_word_embeddings says that they are the same",
            head.info.shape
        );
        Err(ModelError::Mismatch { directory: self.path.clone(), problems: vec![problem] })
    }
}

/// The tensors that parameters consist of, by name.
struct Wanted<'a> {
    /// The shape, the parameter and the tensor's number in it.
    tensors: HashMap<String, (&'a [usize], usize, usize)>,
}

/// Where tensors are, as far as they were found.
struct Found {
    parameters: Vec<Vec<Option<Place>>>,
    spare_head: Option<Place>,
}

impl<'a> Wanted<'a> {
    fn of(specs: &'a [Spec]) -> Self {
        let tensors = specs.iter().enumerate().flat_map(|(index, spec)| {
            let names = spec.tensor_names().enumerate();
            names.map(move |(part, name)| (name, (spec.tensor_shape(), index, part)))
        });
        Self { tensors: tensors.collect() }
    }

    /// Notes where a tensor is, or says why it does not fit.
    fn put(
        &self,
        name: &str,
        info: &TensorInfo,
        file: usize,
        found: &mut Found,
    ) -> Result<(), String> {
        if let Some((shape, index, part)) = self.tensors.get(name) {
            found.parameters[*index][*part] = Some(place(name, info, shape, file)?);
            return Ok(());
        }
        match self.tensors.get(EMBEDDING) {
            Some((shape, ..)) if name == HEAD => {
                found.spare_head = Some(place(name, info, shape, file)?);
                Ok(())
            }
            _ if name.ends_with("rotary_emb.inv_freq") => Ok(()),
            _ => Err(format!("{name} {:?} is not a part of it", info.shape)),
        }
    }
}

/// Where a tensor of this shape is, or why it cannot be used.
fn place(name: &str, info: &TensorInfo, shape: &[usize], file: usize) -> Result<Place, String> {
    if info.shape != shape {
        return Err(format!("{name} is {:?} and must be {shape:?}", info.shape));
    }
    match Precision::of(info.dtype) {
        Some(precision) => Ok(Place { file, info: info.clone(), precision }),
        None => Err(format!("{name} is {:?}; F32, BF16 and F16 are supported", info.dtype)),
    }
}
