//! `seatbelt prices`: price books out of public lists, and how the prices in force differ from one.
//!
//! Nothing is ever applied by itself: a book is written to standard output, for a person to read and include.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand, ValueEnum};
use seatbelt_gateway::{Dialect, UpstreamConfig};
use seatbelt_pricing::{
    Day, Difference, Format, List, ListError, Origin, PriceChange, Running, Selection,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::{Config, ConfigError, PRICES_MAX};

/// Largest list that is read into memory; one byte more than the reader takes.
const LIST_BYTES_MAX: u64 = 64 * 1024 * 1024 + 1;

/// What to do.
#[derive(Debug, Args)]
pub struct PricesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a price book for `include`, as TOML. What was not understood is left out and told by name, on standard
    /// error too; ends with 1 where a model that was asked for by name is left out
    Import {
        #[command(flatten)]
        list: ListArgs,
        /// Import this model alone; may be given more than once
        #[arg(long, value_name = "MODEL")]
        model: Vec<String>,
        /// Import models too of which the list does not tell the most tokens of context and output
        #[arg(long)]
        without_limits: bool,
    },
    /// Print how the prices of the configured upstreams differ from a list's: dearer, cheaper, gone from it, new in
    /// it. Ends with 1 where one of the first three is found
    Diff {
        #[command(flatten)]
        list: ListArgs,
        /// The configuration whose prices are in force; no secret that it names is needed
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The list: data.json of genai-prices, or LiteLLM's model_prices_and_context_window.json
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The list's format
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    format: FormatArg,
    /// Of this provider alone, as the list names it; may be given more than once
    #[arg(long, value_name = "PROVIDER")]
    provider: Vec<String>,
    /// The day whose prices are taken, and those announced after it where they are dearer [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    day: Option<Day>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// By what the file looks like.
    Auto,
    GenaiPrices,
    #[value(name = "litellm")]
    LiteLlm,
}

/// Why it was not done.
#[derive(Debug, Error)]
pub enum PricesError {
    /// Correct the configuration.
    #[error("cannot use the configuration")]
    Config(#[from] ConfigError),
    /// Name another file.
    #[error("cannot read the price list {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Give a list that is one.
    #[error("cannot use the price list {}", .path.display())]
    List {
        /// The file.
        path: PathBuf,
        #[source]
        source: ListError,
    },
    /// Name some of the providers.
    #[error(
        "the list prices {0} models, and a book has {PRICES_MAX} at most: choose some with --provider or --model"
    )]
    TooMany(usize),
    /// Set the clock, or give the day.
    #[error("the clock is before 1970: set it, or give --day")]
    Clock,
    /// Standard output is gone or full.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// Carries it out.
pub fn run(args: PricesArgs) -> Result<ExitCode, PricesError> {
    let (mut out, mut errors) = (io::stdout().lock(), io::stderr().lock());
    Ok(match carry_out(args, &mut out, &mut errors)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Whether it ended as asked.
fn carry_out(
    args: PricesArgs,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, PricesError> {
    match args.command {
        Command::Import {
            list,
            model,
            without_limits,
        } => {
            let selection = Selection {
                providers: list.provider.clone(),
                models: model,
                without_limits,
            };
            import(&list, &selection, out, errors)
        }
        Command::Diff { list, config } => diff(list, &config, out),
    }
}

fn import(
    args: &ListArgs,
    selection: &Selection,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, PricesError> {
    let (list, origin) = read(args)?;
    let list = selection.of(list);
    if list.models.len() > PRICES_MAX {
        return Err(PricesError::TooMany(list.models.len()));
    }
    out.write_all(seatbelt_pricing::write(&list, &origin).as_bytes())?;
    let missing = selection.missing(&list);
    tell(&list, &missing, errors)?;
    Ok(missing.is_empty() && !list.models.is_empty())
}

/// What was left out, for whoever does not read the book.
fn tell(list: &List, missing: &[&str], errors: &mut dyn Write) -> Result<(), PricesError> {
    for not in &list.left_out {
        let line = format!("not imported: {}: {}", not.name, not.reason);
        // names come from outside, and errors go to a terminal
        writeln!(errors, "{}", line.replace(char::is_control, " "))?;
    }
    let is_told = |model: &str| list.left_out.iter().any(|not| not.name.model == model);
    for model in missing.iter().filter(|model| !is_told(model)) {
        writeln!(errors, "not imported: {model}: is not in the list")?;
    }
    let (models, others) = (list.models.len(), list.left_out.len());
    writeln!(errors, "{models} models imported, {others} not")?;
    Ok(())
}

fn diff(args: ListArgs, config: &Path, out: &mut dyn Write) -> Result<bool, PricesError> {
    let upstreams = Config::load_upstreams(config)?;
    let (list, origin) = read(&args)?;
    let selection = Selection {
        providers: args.provider,
        without_limits: true,
        ..Selection::default()
    };
    let list = selection.of(list);
    let running = running(&upstreams, &Config::load_references(config)?, &list);
    let differences = seatbelt_pricing::compare(&running, &list);
    let mut counts = [0; 4];
    for difference in &differences {
        let (count, line) = match difference {
            Difference::Dearer(model, changes) => {
                (0, format!("dearer: {model}: {}", told(changes)))
            }
            Difference::Cheaper(model, changes) => {
                (1, format!("cheaper: {model}: {}", told(changes)))
            }
            Difference::Gone(model, reason) => (2, format!("gone: {model}: {reason}")),
            Difference::New(name) => (3, format!("new: {name}")),
        };
        counts[count] += 1;
        writeln!(out, "{}", line.replace(char::is_control, " "))?;
    }
    let [dearer, cheaper, gone, new] = counts;
    writeln!(
        out,
        "{} prices in force against {} (format {}, day {}): {dearer} dearer, {cheaper} cheaper, {gone} gone, {new} new",
        running.len(),
        origin.source,
        list.format,
        origin.day,
    )?;
    Ok(dearer + cheaper + gone == 0)
}

/// What costs something else by the list: now, and there.
fn told(changes: &[PriceChange]) -> String {
    let each = changes.iter();
    let each = each.map(|PriceChange { what, now, listed }| format!("{what} {now} -> {listed}"));
    each.collect::<Vec<_>>().join(", ")
}

/// The configured prices of upstreams, each looked up under the name that it was taken from a book by. One of an
/// upstream, or of a book, that has a provider's name is of that provider.
fn running(
    upstreams: &[UpstreamConfig],
    references: &BTreeMap<String, (String, String)>,
    list: &List,
) -> Vec<Running> {
    let names_one = |provider: &&String| {
        let mut listed = list.models.iter();
        listed.any(|listed| listed.name.provider == **provider)
    };
    let mut running = Vec::new();
    for upstream in upstreams {
        for model in &upstream.models {
            let (of, listed_as) = references.get(model.id.as_str()).cloned().unzip();
            let provider = [of.as_ref(), Some(&upstream.name)].into_iter().flatten();
            let provider = provider.into_iter().find(names_one).cloned();
            let classes = model.classes.iter().map(|class| &class.price);
            running.extend(model.price.iter().chain(classes).map(|price| Running {
                provider: provider.clone(),
                listed_as: listed_as.clone(),
                price: price.clone(),
                writes_cost_more: upstream.kind == Dialect::Anthropic,
            }));
        }
    }
    running
}

/// The list of a file, and where it is from.
fn read(args: &ListArgs) -> Result<(List, Origin), PricesError> {
    let path = &args.from;
    let bytes = bytes(path).map_err(|source| PricesError::Unreadable {
        path: path.clone(),
        source,
    })?;
    let day = match args.day {
        Some(day) => day,
        None => today()?,
    };
    let format = match args.format {
        FormatArg::Auto => None,
        FormatArg::GenaiPrices => Some(Format::GenaiPrices),
        FormatArg::LiteLlm => Some(Format::LiteLlm),
    };
    let list = seatbelt_pricing::read(&bytes, format, day).map_err(|source| PricesError::List {
        path: path.clone(),
        source,
    })?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let origin = Origin {
        source: name.to_string_lossy().into_owned(),
        sha256: hex::encode(Sha256::digest(&bytes)),
        day,
    };
    Ok((list, origin))
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LIST_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn today() -> Result<Day, PricesError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_err(|_| PricesError::Clock)?;
    Ok(Day::of_unix_ms(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests;
