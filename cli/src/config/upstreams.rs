//! `[[upstreams]]`: foreign services with their models and prices.

use std::collections::BTreeSet;

use seatbelt_gateway::{
    Aspect, Class, DeploymentConfig, Dialect, MaxField, PricedClass, Profile, TokenizerName,
    UpstreamConfig, UpstreamModel,
    config::{
        ALLOWANCE_TOKENS_BOUNDS, ATTEMPTS, CLASSES_MAX, DEPLOYMENTS_MAX, FALLBACKS_MAX, FIELDS_MAX,
        MODELS_MAX, PRIORITY, UPSTREAMS_MAX, WEIGHT,
    },
};
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, ids::ModelId, price::Price};
use seatbelt_tokens::Encoding;
use secrecy::SecretString;

use super::{
    Context,
    media::read_media,
    price::{is_never_cheaper, multiplied, multiplier, read_price},
    provided::read_tools,
    reader::Section,
};

/// Words for the class that is pinned where none is asked for.
const PINNED: [&str; 4] = ["default", "standard", "standard_only", "global"];
/// What carries the output maximum, as upstreams name it.
const MAX_FIELDS: [(&str, MaxField); 2] = [
    ("max_tokens", MaxField::MaxTokens),
    ("max_completion_tokens", MaxField::MaxCompletionTokens),
];

pub(super) fn read(root: &mut Section, context: &Context<'_>) -> Vec<UpstreamConfig> {
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    let mut upstreams = Vec::new();
    for section in root.sections("upstreams", UPSTREAMS_MAX) {
        upstreams.extend(read_upstream(section, context, &mut names, &mut ids));
    }
    upstreams
}

fn read_upstream(
    mut section: Section,
    context: &Context<'_>,
    names: &mut BTreeSet<String>,
    ids: &mut BTreeSet<ModelId>,
) -> Option<UpstreamConfig> {
    let name = section.required("name", |section| section.text_with("name", name));
    if let Some(name) = name.as_ref().filter(|name| !names.insert((*name).clone())) {
        section.mistake("name", format!("{name:?} is used by another upstream"));
    }
    let kinds = [
        ("openai", Dialect::OpenAi),
        ("anthropic", Dialect::Anthropic),
    ];
    let kind = section.required("kind", |section| section.word("kind", &kinds));
    let base_url = section.required("base_url", |section| section.text_with("base_url", url));
    let api_key = api_key(&mut section, context);
    let profile = profile(&mut section, kind);
    let allow_fields = section.texts("allow_fields", FIELDS_MAX);
    let errors_are_free = section.flag("errors_are_free").unwrap_or(false);
    let responses = section.flag("responses").unwrap_or(false);
    if responses && kind == Some(Dialect::Anthropic) {
        let problem = "is for upstreams of kind \"openai\": leave it out";
        section.mistake("responses", problem);
    }
    let (weight, priority) = (weight(&mut section), priority(&mut section));
    let (least, most) = ATTEMPTS.bounds();
    let attempts = section.number("attempts", least, most);
    let retry_unknown = section.flag("retry_unknown").unwrap_or(false);
    let deployments = section.sections("deployments", DEPLOYMENTS_MAX);
    let deployments = deployments
        .into_iter()
        .filter_map(|part| read_deployment(part, context, names));
    let deployments: Vec<_> = deployments.collect();
    let threads = threads(&mut section, responses && deployments.is_empty());
    let models = read_models(&mut section, context, kind, ids);
    let bounds_calls = match kind {
        Some(Dialect::OpenAi) => {
            let is_openai = |url: &String| url.starts_with("https://api.openai.com/");
            let is_theirs = profile.is_none() && base_url.as_ref().is_some_and(is_openai);
            responses && (is_theirs || profile == Some(Profile::OpenAi))
        }
        Some(Dialect::Anthropic) => profile != Some(Profile::Generic),
        None => true,
    };
    if !bounds_calls && models.iter().any(|model| !model.tools.is_empty()) {
        section.mistake(
            "models",
            "have tools that the provider runs, whose calls only upstreams of kind \"anthropic\" limit, and of kind \"openai\" with responses = true and profile = \"openai\": leave them out",
        );
    }
    section.finish();
    Some(UpstreamConfig {
        name: name?,
        kind: kind?,
        profile,
        allow_fields,
        errors_are_free,
        responses,
        threads,
        base_url: base_url?,
        api_key,
        deployments,
        weight,
        priority,
        retry_unknown,
        attempts: attempts.and_then(|attempts| u8::try_from(attempts).ok()),
        models,
    })
}

/// Whether it keeps responses, which one address does that speaks the API.
fn threads(section: &mut Section, may: bool) -> bool {
    let threads = section.flag("threads").unwrap_or(false);
    if threads && !may {
        section.mistake(
            "threads",
            "are kept where one address speaks /v1/responses: set responses = true, without deployments",
        );
    }
    threads
}

/// `[[upstreams.deployments]]`: another place where the upstream serves the same.
fn read_deployment(
    mut section: Section,
    context: &Context<'_>,
    names: &mut BTreeSet<String>,
) -> Option<DeploymentConfig> {
    let name = section.required("name", |section| section.text_with("name", name));
    if let Some(name) = name.as_ref().filter(|name| !names.insert((*name).clone())) {
        section.mistake("name", format!("{name:?} is used by another upstream"));
    }
    let base_url = section.required("base_url", |section| section.text_with("base_url", url));
    let api_key = api_key(&mut section, context);
    let (weight, priority) = (weight(&mut section), priority(&mut section));
    section.finish();
    Some(DeploymentConfig {
        name: name?,
        base_url: base_url?,
        api_key,
        weight,
        priority,
    })
}

fn api_key(section: &mut Section, context: &Context<'_>) -> Option<SecretString> {
    section.text_with("api_key_env", |variable| {
        match context.environment.get(variable) {
            Some(key) if !key.is_empty() => Ok(SecretString::from(key.as_str())),
            _ if !context.with_secrets => Ok(SecretString::from("")),
            _ => Err(format!(
                "names {variable:?}, which is not set: export it, or leave this out"
            )),
        }
    })
}

fn weight(section: &mut Section) -> u32 {
    let (least, most) = WEIGHT.bounds();
    let weight = section.number("weight", least, most);
    let weight = weight.unwrap_or(WEIGHT.default());
    u32::try_from(weight).expect("its bounds are within 32 bits")
}

fn priority(section: &mut Section) -> u8 {
    let (least, most) = PRIORITY.bounds();
    let priority = section.number("priority", least, most);
    let priority = priority.unwrap_or(PRIORITY.default());
    u8::try_from(priority).expect("its bounds are within 8 bits")
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => {
            Err("is not a name: use 1 to 64 characters of A-Z a-z 0-9 - _ and dots".to_owned())
        }
    }
}

fn profile(section: &mut Section, kind: Option<Dialect>) -> Option<Profile> {
    let profiles = [
        ("openai", Profile::OpenAi),
        ("anthropic", Profile::Anthropic),
        ("generic", Profile::Generic),
    ];
    let profile = section.word("profile", &profiles)?;
    if kind.is_some_and(|kind| !profile.fits(kind)) {
        let problem = "is of another kind than the upstream: write the kind's own, or \"generic\"";
        section.mistake("profile", problem);
    }
    Some(profile)
}

fn url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains([' ', '@', '?', '#']) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        Some(_) => Err(
            "is not a base address: write one such as \"https://host/v1\", without user or query"
                .to_owned(),
        ),
        None => Err("does not begin with http:// or https://".to_owned()),
    }
}

/// A model belongs to one upstream: `ids` holds those of all upstreams so far.
fn read_models(
    section: &mut Section,
    context: &Context<'_>,
    kind: Option<Dialect>,
    ids: &mut BTreeSet<ModelId>,
) -> Vec<UpstreamModel> {
    let parts = section.required("models", |section| {
        Some(section.sections("models", MODELS_MAX))
    });
    let mut models = Vec::new();
    for part in parts.unwrap_or_default() {
        models.extend(read_model(part, context, kind, ids));
    }
    models
}

fn read_model(
    mut section: Section,
    files: &Context<'_>,
    kind: Option<Dialect>,
    ids: &mut BTreeSet<ModelId>,
) -> Option<UpstreamModel> {
    let id = model_id(&mut section, ids);
    let tokens = |section: &mut Section, name| {
        section.required(name, |section| {
            section.number(name, 1, TOKENS_PER_REQUEST_MAX)
        })
    };
    let context = tokens(&mut section, "context");
    let output = tokens(&mut section, "output");
    if context
        .zip(output)
        .is_some_and(|(context, output)| output > context)
    {
        let problem = "is above the model's context, which holds input and output";
        section.mistake("output", problem);
    }
    let allowance = |section: &mut Section, name| {
        let (least, most) = ALLOWANCE_TOKENS_BOUNDS;
        section.number(name, least, most)
    };
    let message_allowance = allowance(&mut section, "message_allowance");
    let request_allowance = allowance(&mut section, "request_allowance");
    let tools_allowance = allowance(&mut section, "tools_allowance");
    let tokenizer = tokenizer(&mut section, files, kind);
    let output_default = section.number("output_default", 1, TOKENS_PER_REQUEST_MAX);
    if output_default
        .zip(output)
        .is_some_and(|(default, most)| default > most)
    {
        section.mistake("output_default", "is above the model's output");
    }
    let max_field = section.word("max_field", &MAX_FIELDS);
    let output_is_visible = section.flag("output_is_visible").unwrap_or(false);
    let allow_fields = section.texts("allow_fields", FIELDS_MAX);
    let answers_as = section.texts("answers_as", FIELDS_MAX);
    let writes_cost_more = kind == Some(Dialect::Anthropic);
    let media = read_media(&mut section);
    let fallback = fallback(&mut section, id.as_ref(), files.served);
    let mut price = read_price(&mut section, id.as_ref(), writes_cost_more);
    let tools = read_tools(&mut section, price.as_mut());
    let classes = read_classes(&mut section, price.as_ref(), writes_cost_more, ids);
    section.finish();
    Some(UpstreamModel {
        id: id?,
        context: context?,
        output: output?,
        message_allowance,
        request_allowance,
        tools_allowance,
        tokenizer,
        output_default,
        max_field: max_field.unwrap_or_default(),
        output_is_visible,
        allow_fields,
        answers_as,
        price,
        classes,
        tools,
        media,
        fallback,
    })
}

fn read_classes(
    section: &mut Section,
    of: Option<&Price>,
    writes_cost_more: bool,
    ids: &mut BTreeSet<ModelId>,
) -> Vec<PricedClass> {
    let parts = section.sections("class", CLASSES_MAX).into_iter();
    let classes = parts.filter_map(|part| read_class(part, of, writes_cost_more, ids));
    classes.collect()
}

/// Models that are asked in its place: others that are served, each once.
fn fallback(
    section: &mut Section,
    id: Option<&ModelId>,
    served: Option<&BTreeSet<String>>,
) -> Vec<ModelId> {
    let mut models = Vec::new();
    for text in section.texts("fallback", FALLBACKS_MAX) {
        let is_served = served.is_none_or(|served| served.contains(&text));
        let problem = match ModelId::new(&text) {
            Ok(model) if Some(&model) == id => {
                format!("{text:?} is the model itself: name another")
            }
            Ok(model) if models.contains(&model) => {
                format!("{text:?} is named twice: name each model once")
            }
            Ok(_) if !is_served => {
                format!("{text:?} is no model that is listed here: name one that is")
            }
            Ok(model) => {
                models.push(model);
                continue;
            }
            Err(error) => error.to_string(),
        };
        section.mistake("fallback", problem);
    }
    models
}

/// `[[upstreams.models.class]]`: one of `service_tier`, `speed` and `inference_geo`, and what it costs then.
pub(super) fn read_class(
    mut section: Section,
    of: Option<&Price>,
    writes_cost_more: bool,
    ids: &mut BTreeSet<ModelId>,
) -> Option<PricedClass> {
    let fields = [
        ("service_tier", Aspect::ServiceTier),
        ("speed", Aspect::Speed),
        ("inference_geo", Aspect::Geography),
    ];
    let mut asked = Vec::new();
    for (name, aspect) in fields {
        asked.extend(
            section
                .text_with(name, class_word)
                .map(|value| (name, aspect, value)),
        );
    }
    let answers_as = section.texts("answers_as", CLASSES_MAX);
    let multiplier_ppm = section.text_with("multiplier", multiplier);
    let id = match (&asked[..], of) {
        ([(name, _, value)], Some(of)) => ModelId::new(format!("{}+{name}={value}", of.model)).ok(),
        _ => None,
    };
    let own = read_price(&mut section, id.as_ref(), writes_cost_more);
    let price = match (&id, of, multiplier_ppm) {
        (Some(id), Some(of), Some(ppm)) => multiplied(of, id.clone(), ppm),
        _ => own.map(|own| Price {
            fee_per_tool_call: of.and_then(|of| of.fee_per_tool_call),
            ..own
        }),
    };
    let problem = match (of, &id, &price) {
        (None, ..) => Some("is a class of a model without a price: give the model one"),
        (_, None, _) => Some("must say one of service_tier, speed and inference_geo"),
        (_, Some(id), _) if !ids.insert(id.clone()) => {
            Some("says what another class of its model says: name each once")
        }
        (_, _, None) => Some("has no price that can be: write multiplier or price"),
        (Some(of), _, Some(price)) if !is_never_cheaper(price, of) => Some(
            "costs less than its model in some way, and may be served as that: give it no lower rate",
        ),
        _ => None,
    };
    if let Some(problem) = problem {
        section.mistake("", problem);
    }
    section.finish();
    let (_, aspect, value) = asked.pop()?;
    Some(PricedClass {
        class: Class {
            aspect,
            value,
            answers_as,
        },
        price: price?,
    })
}

fn class_word(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match (1..=32).contains(&text.len()) && text.bytes().all(plain) {
        true if PINNED.contains(&text) => {
            Err("is the class that the model's own price is for: name another".to_owned())
        }
        true => Ok(text.to_owned()),
        false => {
            Err("is not one word of at most 32 characters A-Z a-z 0-9 - _ and dots".to_owned())
        }
    }
}

/// An encoding by its name, else a file.
fn tokenizer(
    section: &mut Section,
    context: &Context<'_>,
    kind: Option<Dialect>,
) -> Option<TokenizerName> {
    let tokenizer = section.text_with("tokenizer", |text| match Encoding::named(text) {
        Some(encoding) => Ok(TokenizerName::Encoding(encoding)),
        None if text.ends_with(".json") => Ok(TokenizerName::File(context.path(text))),
        None => Err(format!(
            "{text:?} is not known: use \"o200k_base\", \"cl100k_base\" or the path of a tokenizer.json"
        )),
    })?;
    if kind == Some(Dialect::Anthropic) {
        let problem =
            "is not for an upstream of kind anthropic, which publishes none: leave it out";
        section.mistake("tokenizer", problem);
    }
    Some(tokenizer)
}

pub(super) fn model_id(section: &mut Section, ids: &mut BTreeSet<ModelId>) -> Option<ModelId> {
    let id = section.required("id", |section| {
        section.text_with("id", |text| {
            ModelId::new(text).map_err(|error| error.to_string())
        })
    })?;
    if !ids.insert(id.clone()) {
        section.mistake(
            "id",
            format!("{:?} is listed twice: name each model once", id.as_str()),
        );
    }
    Some(id)
}
