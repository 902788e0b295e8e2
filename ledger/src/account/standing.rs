//! Caps as callers see them. Whoever asks for a key takes the writer from all others meanwhile, so what is
//! not that key's is leapt over, however much the account has.

use seatbelt_schemas::{
    cap::CapStanding,
    ids::{KeyId, RunId},
    scope::Scope,
};

use super::{Account, Cap, range_of};

impl Account {
    /// The caps as callers see them at `at_ms`; only those that apply to `key` where one is given,
    /// those of its open runs included; only those of `run` where one is given.
    pub fn standings<'a>(
        &'a self,
        key: Option<&'a KeyId>,
        run: Option<&'a RunId>,
        at_ms: u64,
    ) -> impl Iterator<Item = CapStanding> + 'a {
        let all = key.is_none() && run.is_none();
        let all: &[Cap] = if all { &self.caps } else { &[] };
        let of_run = run.map(|run| self.caps_at(Scope::sort_key_of_run(run)));
        let of_key = key.filter(|_| run.is_none());
        let of_key = of_key.into_iter().flat_map(|key| self.caps_of_key(key));
        let caps = all.iter().chain(of_run.into_iter().flatten()).chain(of_key);
        caps.map(move |cap| cap.standing(at_ms))
    }

    /// Those of its account, its team, itself and its open runs, in this order, which is that of all caps.
    fn caps_of_key<'a>(&'a self, key: &'a KeyId) -> impl Iterator<Item = &'a Cap> {
        let team = self.key(key).and_then(|key| key.team.as_ref());
        let team = team.map(|team| (1, team.as_str()));
        let own = [(0, "")].into_iter().chain(team).chain([(2, key.as_str())]);
        let runs = self.holdings.runs_of(key).map(Scope::sort_key_of_run);
        own.chain(runs).flat_map(|scope| self.caps_at(scope))
    }

    fn caps_at(&self, scope: (u8, &str)) -> &[Cap] {
        &self.caps[range_of(&self.caps, scope)]
    }
}
