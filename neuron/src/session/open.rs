//! Opens the session of a graph on its device, and sees that the graph is one that can be bound.

use std::path::Path;

use ort::{
    environment::Environment,
    ep::{self, cuda::AttentionBackend},
    logging::LogLevel,
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::TensorElementType,
};

use super::{caches, device_error, model_error, placement, unfit};
use crate::{
    config::{Arena, CudaOptions, Device, ModelConfig},
    error::NeuronError,
    model::GraphSpec,
};

/// What a graph gives.
pub(super) struct Given {
    pub(super) vocab: usize,
    pub(super) element: TensorElementType,
    /// Its output projection was pruned to the row of the last token.
    pub(super) last_row_alone: bool,
}

/// Opens the graph; on a GPU, all of it.
pub(super) fn session(
    environment: &Environment,
    config: &ModelConfig,
    file: &Path,
    threads: usize,
) -> Result<Session, NeuronError> {
    let builder =
        plain_builder(environment, threads).map_err(|error| model_error(config, &error))?;
    let mut builder = match config.device {
        Device::Cpu => builder,
        Device::Cuda => cuda(builder, config).map_err(|error| device_error(config, &error))?,
    };
    let session = (builder.commit_from_file(file)).map_err(|error| load_error(config, &error))?;
    match config.device {
        Device::Cpu => Ok(session),
        Device::Cuda => all_on_the_gpu(session, config),
    }
}

fn all_on_the_gpu(session: Session, config: &ModelConfig) -> Result<Session, NeuronError> {
    let on_cpu = placement::on_cpu(&session).map_err(|error| device_error(config, &error))?;
    match placement::mistake(&on_cpu, &config.cuda.cpu_nodes) {
        None => Ok(session),
        Some(detail) => Err(unfit(config, detail)),
    }
}

fn cuda(builder: SessionBuilder, config: &ModelConfig) -> ort::Result<SessionBuilder> {
    let builder = builder.with_config_entry(placement::RECORD, "1")?;
    let provider = provider(&config.cuda).build().error_on_failure();
    Ok(builder.with_execution_providers([provider])?)
}

/// ONNX Runtime's own kernels, not cuDNN's, which makes a plan for each number of tokens that it has not met: 50 ms on
/// an H100, where a prompt of 1,900 tokens is read in 6. Prompts have any length, and steps any number of rows.
fn attention() -> AttentionBackend {
    AttentionBackend::FLASH_ATTENTION
        | AttentionBackend::EFFICIENT_ATTENTION
        | AttentionBackend::MATH
}

fn provider(options: &CudaOptions) -> ep::CUDA {
    let strategy = match options.arena {
        Arena::Exact => ep::ArenaExtendStrategy::SameAsRequested,
        Arena::Doubling => ep::ArenaExtendStrategy::NextPowerOfTwo,
    };
    let provider = ep::CUDA::default()
        .with_device_id(options.device_id)
        .with_arena_extend_strategy(strategy)
        .with_attention_backend(attention())
        .with_cuda_graph(options.graphs);
    match options.memory_bytes_max {
        Some(bytes) => provider.with_memory_limit(bytes),
        None => provider,
    }
}

/// Threads are given, not guessed, and do not spin: cores are shared with the rest of the process.
/// Memory patterns are off because every step has another shape.
fn plain_builder(environment: &Environment, threads: usize) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_log_level(LogLevel::Warning)?;
    Ok(builder)
}

/// That the graph takes and gives what is bound to it.
pub(super) fn check(session: &Session, graph: &GraphSpec) -> ort::Result<Given> {
    let known: Vec<String> = caches::past_names(graph)
        .chain([graph.input_ids.clone(), graph.attention_mask.clone()])
        .collect();
    match session
        .inputs()
        .iter()
        .find(|input| !known.iter().any(|name| name == input.name()))
    {
        Some(input) => Err(ort::Error::new(format!(
            "the graph wants an input {:?} that this neuron does not know: build it with GroupQueryAttention and fused \
             rotary embedding",
            input.name()
        ))),
        None => given(session, graph),
    }
}

fn given(session: &Session, graph: &GraphSpec) -> ort::Result<Given> {
    let output = (session.outputs().iter())
        .find(|output| output.name() == graph.logits)
        .map(|output| output.dtype());
    let shape = output.and_then(|output| output.tensor_shape());
    let size = shape
        .and_then(|shape| shape.last().copied())
        .and_then(|size| usize::try_from(size).ok());
    let vocab = size.filter(|size| *size > 0).ok_or_else(|| {
        ort::Error::new(format!(
            "the graph's output {:?} does not say its vocabulary size",
            graph.logits
        ))
    })?;
    let element = output
        .and_then(|output| output.tensor_type())
        .ok_or_else(|| ort::Error::new(format!("the output {:?} is no tensor", graph.logits)))?;
    Ok(Given {
        vocab,
        element,
        last_row_alone: shape.is_some_and(|shape| shape.get(1) == Some(&1)),
    })
}

/// A provider that could be loaded may still find no device when the graph is: its words name CUDA.
fn load_error(config: &ModelConfig, error: &ort::Error) -> NeuronError {
    let of_device =
        config.device == Device::Cuda && error.message().to_ascii_uppercase().contains("CUD");
    if of_device {
        device_error(config, error)
    } else {
        model_error(config, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Model, tests::tiny_config},
        session::library::{self, tests::fetched},
    };

    #[test]
    fn options_of_cuda_become_those_of_its_provider() {
        let plain = format!("{:?}", provider(&CudaOptions::default()));
        assert!(plain.contains("SameAsRequested"), "{plain}");
        assert!(!plain.contains("gpu_mem_limit"), "{plain}");
        // flash, efficient and plain attention, without cuDNN's (8)
        assert!(plain.contains(r#""sdpa_kernel": "19""#), "{plain}");
        let told = format!(
            "{:?}",
            provider(&CudaOptions {
                device_id: 3,
                memory_bytes_max: Some(12_345_678),
                arena: Arena::Doubling,
                graphs: true,
                ..CudaOptions::default()
            })
        );
        for expected in ["12345678", "kNextPowerOfTwo", "device_id", "\"3\""] {
            assert!(told.contains(expected), "{expected} is not in {told}");
        }
    }

    #[test]
    fn a_session_tells_which_nodes_run_on_the_cpu() {
        let environment = library::runtime(&fetched()).unwrap();
        let config = tiny_config(1);
        let model = Model::load(&config).unwrap();
        let builder = plain_builder(&environment, 1).unwrap();
        let mut builder = builder.with_config_entry(placement::RECORD, "1").unwrap();
        let session = builder.commit_from_file(&model.graph.file).unwrap();
        let nodes = placement::on_cpu(&session).unwrap();
        let error = placement::mistake(&nodes, &[]).unwrap();
        assert!(error.contains("(ReduceSum)"), "{error}");
        let all = [
            "ReduceSum",
            "Sub",
            "Mul",
            "Add",
            "Sigmoid",
            "MatMul",
            "FusedMatMul",
        ];
        let rest = placement::mistake(&nodes, &all.map(str::to_owned)).unwrap();
        assert!(rest.contains("GroupQueryAttention"), "{rest}");
    }
}
