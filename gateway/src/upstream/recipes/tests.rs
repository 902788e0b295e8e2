use std::{
    future::IntoFuture,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, http::StatusCode, routing::post};
use seatbelt_schemas::{ids::ModelId, neuron::NeuronModel};
use seatbelt_tokens::template_source;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::upstream::client::client;

fn tiny() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let recipe = Recipe {
        tokenizer: std::fs::read_to_string(folder.join("tokenizer.json")).unwrap(),
        template: template_source(&folder).unwrap(),
        bos: "<|bos|>".to_owned(),
        eos: "<|end|>".to_owned(),
    };
    recipe.encode()
}

fn record(neuron: &str, url: String, recipe: &str) -> NeuronRecord {
    NeuronRecord {
        v: 1,
        neuron: NeuronId::new(neuron).unwrap(),
        url,
        device: "cpu".to_owned(),
        models: vec![NeuronModel {
            id: ModelId::new("tiny").unwrap(),
            context: 64,
            output: 32,
            slots: 1,
            recipe: Some(recipe.to_owned()),
            ready: true,
            loaded: true,
            grows: false,
        }],
        active: 0,
        queued: 0,
        at_ms: 1,
    }
}

/// A neuron that hands out these bytes under any name, and how often it was asked.
async fn neuron(status: u16, bytes: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let answer = move || {
        seen.fetch_add(1, SeqCst);
        let bytes = bytes.clone();
        async move { (StatusCode::from_u16(status).unwrap(), bytes) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route(PATH_RECIPE, post(answer));
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, asked)
}

/// Recipes that follow these records.
fn following(records: Vec<NeuronRecord>) -> (Arc<Recipes>, watch::Sender<Vec<NeuronRecord>>) {
    let client = client(Duration::from_secs(1)).unwrap();
    let recipes = Recipes::new(client, NeuronSecret::new([7; 32]), Arc::new(|| 1));
    let (sender, neurons) = watch::channel(records);
    tokio::spawn(Arc::clone(&recipes).follow(neurons, CancellationToken::new()));
    (recipes, sender)
}

#[tokio::test]
async fn one_that_is_registered_is_fetched_once_for_all_who_have_it() {
    let (bytes, name) = (tiny(), Recipe::name_of(&tiny()));
    let (url, asked) = neuron(200, bytes).await;
    let records = ["a", "b"].map(|neuron| record(neuron, url.clone(), &name));
    let (recipes, sender) = following(records.to_vec());
    let counter = recipes.get(&name).await.expect("it is handed out");
    let hi = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(counter.count(|name| hi.get(name), 64).unwrap(), 6);
    sender.send(vec![record("c", url, &name)]).unwrap();
    assert!(recipes.get(&name).await.is_some());
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test]
async fn another_neuron_hands_it_out_where_one_cannot_be_reached() {
    let name = Recipe::name_of(&tiny());
    let (url, _) = neuron(200, tiny()).await;
    let away = record("a", "http://127.0.0.1:1".to_owned(), &name);
    let (recipes, _sender) = following(vec![away, record("b", url, &name)]);
    assert!(recipes.get(&name).await.is_some());
}

#[tokio::test]
async fn what_is_not_as_its_name_says_is_not_believed() {
    for (status, bytes) in [(200, b"{}".to_vec()), (500, tiny()), (404, tiny())] {
        let name = Recipe::name_of(&tiny());
        let (url, _) = neuron(status, bytes).await;
        let (recipes, _sender) = following(vec![record("a", url, &name)]);
        assert!(recipes.get(&name).await.is_none());
    }
}

#[tokio::test]
async fn one_that_cannot_be_used_is_not_fetched_again() {
    let bytes = b"{}".to_vec();
    let name = Recipe::name_of(&bytes);
    let (url, asked) = neuron(200, bytes).await;
    let (recipes, sender) = following(vec![record("a", url.clone(), &name)]);
    assert!(recipes.get(&name).await.is_none());
    sender.send(vec![record("b", url, &name)]).unwrap();
    assert!(recipes.get(&name).await.is_none());
    assert_eq!(asked.load(SeqCst), 1);
}

#[test]
fn no_more_are_kept_than_there_is_room_for() {
    let client = client(Duration::from_secs(1)).unwrap();
    let recipes = Recipes::new(client, NeuronSecret::new([7; 32]), Arc::new(|| 1));
    let named = |names: std::ops::Range<usize>| -> Wanted {
        let names = names.map(|n| (format!("{n:04}"), Vec::new()));
        names.collect()
    };
    for name in named(0..RECIPES_MAX).into_keys() {
        recipes.known().insert(name, RecipeState::Unusable);
    }
    // another one is registered, all others still are
    assert_eq!(recipes.missing(named(0..RECIPES_MAX + 1)), Wanted::new());
    // those of the first half are not any more
    let half = RECIPES_MAX / 2;
    let missing = recipes.missing(named(half..RECIPES_MAX + 3));
    assert_eq!(missing, named(RECIPES_MAX..RECIPES_MAX + 3));
    assert_eq!(recipes.known().len(), RECIPES_MAX - half);
}
