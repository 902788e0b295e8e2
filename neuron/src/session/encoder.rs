//! Runs an encoder graph with ONNX Runtime: texts in, vectors out.
//!
//! A graph that gives a vector for each token (`last_hidden_state`) is pooled here as its folder says, by the mean over a text's own tokens where it says nothing; one
//! that gives the text's (`sentence_embedding`) is taken by its word. Either way a vector has length one.

use std::path::Path;

use ort::{
    session::{RunOptions, Session},
    value::{DynTensor, Tensor},
};

use super::{library, logits, memory::Memory, model_error, open, unfit};
use crate::{
    config::ModelConfig,
    embed::Encoder,
    encoder::{EncoderFolder, Pooling},
    engine::StepError,
    error::NeuronError,
};

const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
/// Which of two texts a token is of: always the first.
const TYPES: &str = "token_type_ids";
const OF_TEXTS: &str = "sentence_embedding";
const OF_TOKENS: &str = "last_hidden_state";
/// How far a vector may lie from the same text's alone, beside a longer one: numbers of eight bits are not exact.
const TOLERANCE: f32 = 0.02;

/// A loaded graph.
pub(crate) struct OnnxEncoder {
    session: Session,
    memory: Memory,
    options: RunOptions,
    /// Whether the graph takes types.
    types: bool,
    output: &'static str,
    pooling: Pooling,
    width: usize,
}

impl OnnxEncoder {
    /// Loads the graph, and checks that what pads a text is not seen in its vector.
    pub(crate) fn load(
        library: &Path,
        config: &ModelConfig,
        folder: &EncoderFolder,
        threads: usize,
    ) -> Result<Self, NeuronError> {
        let environment = library::runtime(library)?;
        let session = open::session(&environment, config, &folder.file, threads)?;
        let mut encoder =
            Self::of(session, config, folder).map_err(|error| model_error(config, &error))?;
        encoder
            .check(folder)
            .map_err(|detail| unfit(config, detail))?;
        Ok(encoder)
    }

    fn of(session: Session, config: &ModelConfig, folder: &EncoderFolder) -> ort::Result<Self> {
        let takes = |name: &str| session.inputs().iter().any(|input| input.name() == name);
        let known = [IDS, MASK, TYPES];
        let strange = session
            .inputs()
            .iter()
            .find(|input| !known.contains(&input.name()));
        if let Some(input) = strange {
            let words = format!(
                "the graph wants an input {:?} that this neuron does not know",
                input.name()
            );
            return Err(ort::Error::new(words));
        }
        if !takes(IDS) || !takes(MASK) {
            return Err(ort::Error::new(
                "the graph takes no input_ids and attention_mask",
            ));
        }
        let types = takes(TYPES);
        let gives = |name: &&str| {
            session
                .outputs()
                .iter()
                .any(|output| output.name() == *name)
        };
        let output = [OF_TEXTS, OF_TOKENS].into_iter().find(gives);
        let output = output.ok_or_else(|| {
            ort::Error::new("the graph gives neither sentence_embedding nor last_hidden_state: it is no encoder")
        })?;
        let shape = (session.outputs().iter())
            .find(|given| given.name() == output)
            .and_then(|given| given.dtype().tensor_shape());
        let told = shape
            .and_then(|shape| shape.last().copied())
            .and_then(|size| usize::try_from(size).ok());
        let width = told.filter(|width| *width > 0).or(folder.width);
        let width = width.ok_or_else(|| {
            ort::Error::new("neither the graph nor config.json says how long its vectors are")
        })?;
        Ok(Self {
            memory: Memory::of(&session, config)?,
            options: RunOptions::new()?,
            session,
            types,
            pooling: folder.pooling,
            output,
            width,
        })
    }

    fn check(&mut self, folder: &EncoderFolder) -> Result<(), String> {
        let long = vec![1u32; folder.context.min(16)];
        let short = &long[..long.len().div_ceil(2)];
        let failed = |error: StepError| format!("the first run failed: {error}");
        let alone = self.encode(&[short]).map_err(failed)?;
        let beside = self.encode(&[short, &long]).map_err(failed)?;
        let far = alone[0]
            .iter()
            .zip(&beside[0])
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        match far <= TOLERANCE {
            true => Ok(()),
            false => Err(
                "what pads a text changes its vector: the graph does not obey attention_mask"
                    .to_owned(),
            ),
        }
    }

    fn run(&mut self, texts: &[&[u32]]) -> ort::Result<Vec<Vec<f32>>> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let (width, of_texts) = (self.width, self.output == OF_TEXTS);
        let first = of_texts || self.pooling == Pooling::First;
        let shape = [texts.len(), longest];
        let (mut ids, mut mask) = (
            vec![0i64; texts.len() * longest],
            vec![0i64; texts.len() * longest],
        );
        let lines = ids
            .chunks_exact_mut(longest)
            .zip(mask.chunks_exact_mut(longest));
        for (text, (ids, mask)) in texts.iter().zip(lines) {
            for (id, token) in ids.iter_mut().zip(*text) {
                *id = i64::from(*token);
            }
            mask[..text.len()].fill(1);
        }
        let mut binding = self.session.create_binding()?;
        if self.types {
            binding.bind_input(TYPES, &Tensor::from_array((shape, vec![0i64; ids.len()]))?)?;
        }
        binding.bind_input(IDS, &Tensor::from_array((shape, ids))?)?;
        binding.bind_input(MASK, &Tensor::from_array((shape, mask))?)?;
        binding.bind_output_to_device(self.output, self.memory.host_info())?;
        let mut outputs = self
            .session
            .run_binding_with_options(&binding, &self.options)?;
        let given = outputs
            .remove(self.output)
            .ok_or_else(|| ort::Error::new("the run gave no vectors"))?;
        let given: DynTensor = given.downcast()?;
        let mut values = Vec::new();
        let rows = if of_texts {
            texts.len()
        } else {
            texts.len() * longest
        };
        if given.shape().num_elements() != rows * self.width {
            return Err(ort::Error::new(
                "the run gave another number of values than its vectors have",
            ));
        }
        logits::read(&given, rows * self.width, &mut values)?;
        let row = values.chunks_exact(rows / texts.len() * self.width);
        Ok(texts
            .iter()
            .zip(row)
            .map(|(text, row)| pooled(row, width, if first { 1 } else { text.len() }))
            .collect())
    }
}

/// The mean over the first `tokens` of a row. Its length is made one, so that the number of tokens need not be
/// divided by.
fn pooled(row: &[f32], width: usize, tokens: usize) -> Vec<f32> {
    let mut mean = vec![0.0f32; width];
    for token in row.chunks_exact(width).take(tokens) {
        for (sum, value) in mean.iter_mut().zip(token) {
            *sum += value;
        }
    }
    normalised(mean)
}

impl Encoder for OnnxEncoder {
    fn width(&self) -> usize {
        self.width
    }

    fn encode(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        if texts.is_empty() || texts.iter().any(|text| text.is_empty()) {
            return Err(StepError("a text has no token".to_owned()));
        }
        let vectors = self
            .run(texts)
            .map_err(|error| StepError(error.to_string()))?;
        match vectors.iter().flatten().all(|value| value.is_finite()) {
            true => Ok(vectors),
            false => Err(StepError("the model gave no finite vector".to_owned())),
        }
    }
}

/// The same direction, of length one; nothing where there is none.
pub(crate) fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let squares: f64 = vector
        .iter()
        .map(|value| f64::from(*value) * f64::from(*value))
        .sum();
    let length = squares.sqrt();
    if length > 0.0 {
        for value in &mut vector {
            #[expect(clippy::cast_possible_truncation, reason = "at most one")]
            {
                *value = (f64::from(*value) / length) as f32;
            }
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoder::is_encoder,
        model::tests::{tiny_config, tiny_folder},
        session::library::tests::fetched,
    };

    fn config() -> ModelConfig {
        ModelConfig {
            path: tiny_folder().with_file_name("tiny-encoder"),
            ..tiny_config(1)
        }
    }

    fn encoder() -> OnnxEncoder {
        let folder = EncoderFolder::read(&config()).unwrap();
        OnnxEncoder::load(&fetched(), &config(), &folder, 1).unwrap()
    }

    #[test]
    fn a_text_has_one_vector_whatever_it_is_read_with() {
        assert!(is_encoder(&config().path) && !is_encoder(&tiny_folder()));
        let mut encoder = encoder();
        let texts: [&[u32]; 3] = [&[72, 105], &[1; 60], &[9, 8, 7, 6, 5]];
        let together = encoder.encode(&texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            let alone = encoder.encode(&[text]).unwrap();
            assert_eq!(vector.len(), encoder.width());
            let length: f32 = vector.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
            let far = vector
                .iter()
                .zip(&alone[0])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(far < 1e-5, "{far}");
        }
        assert_ne!(together[0], together[2]);
        assert!(encoder.encode(&[&[]]).is_err());
    }

    #[test]
    fn a_decoder_is_no_encoder() {
        let mut folder = EncoderFolder::read(&config()).unwrap();
        folder.file = tiny_folder().join("model.onnx");
        let error = OnnxEncoder::load(&fetched(), &config(), &folder, 1)
            .err()
            .unwrap();
        assert!(error.to_string().contains("does not know"), "{error}");
    }
}
