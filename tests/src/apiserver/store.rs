//! What the server holds: objects, the versions at which they changed, and snapshots for lists that come in pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::resources::{RESOURCES, Resource, of_object};

/// Namespace and name.
pub(super) type Place = (String, String);

/// An object at one of its versions, and its JSON.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The object.
    pub(super) value: Arc<Value>,
    /// Its text.
    pub(super) text: Arc<str>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Happening {
    /// The version that it made.
    pub(super) version: u64,
    /// ADDED, MODIFIED or DELETED.
    pub(super) word: &'static str,
    /// The object after it, or, of one that is gone, as it was last.
    pub(super) object: Stored,
    /// Where the object is.
    pub(super) place: Place,
}

/// Why a change is refused: HTTP status and Kubernetes' reason.
pub(super) type Refused = (u16, &'static str);

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Place, Stored>,
    history: Vec<Happening>,
    /// Pages of lists that are not finished.
    snapshots: BTreeMap<u64, Arc<Vec<Stored>>>,
}

/// All objects.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    /// Happenings up to this version are forgotten.
    compacted: u64,
    shelves: BTreeMap<(&'static str, &'static str), Shelf>,
    uids: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store::new(1000)
    }
}

impl Store {
    /// An empty store whose versions begin here.
    pub(super) fn new(version: u64) -> Self {
        let shelves = RESOURCES.iter().map(|r| ((r.group, r.plural), Shelf::default())).collect();
        Store { version, compacted: version, shelves, uids: 0 }
    }

    /// The version of the last change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Happenings up to this version cannot be told any more.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// The same objects under versions that begin elsewhere, as after a restore of the server's storage.
    pub(super) fn move_to(&mut self, version: u64) {
        let all: Vec<Value> =
            self.shelves.values().flat_map(|s| s.objects.values().map(|o| (*o.value).clone())).collect();
        let uids = self.uids;
        *self = Store::new(version);
        self.uids = uids;
        for object in all {
            self.set(object).expect("what was stored can be stored");
        }
        self.compact();
    }

    /// Forgets what has happened, and lists that are not finished.
    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        for shelf in self.shelves.values_mut() {
            shelf.history.clear();
            shelf.snapshots.clear();
        }
    }

    /// Creates or replaces an object that says what it is; its version, uid and namespace are filled in.
    ///
    /// # Errors
    /// Nobody knows its kind.
    pub(super) fn set(&mut self, object: Value) -> Result<Stored, Refused> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let resource = of_object(&text("/apiVersion"), &text("/kind")).ok_or((404, "NotFound"))?;
        let namespace = match (resource.namespaced, text("/metadata/namespace")) {
            (false, _) => String::new(),
            (true, none) if none.is_empty() => "default".to_owned(),
            (true, namespace) => namespace,
        };
        let place = (namespace, text("/metadata/name"));
        Ok(self.put(resource, place, object))
    }

    /// Stores this at this place.
    pub(super) fn put(&mut self, resource: &Resource, place: Place, mut object: Value) -> Stored {
        self.version += 1;
        let version = self.version;
        let old = self.shelf(resource).objects.get(&place).cloned();
        let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
        metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        if !place.0.is_empty() {
            metadata.insert("namespace".to_owned(), json!(place.0));
        }
        if metadata.get("uid").is_none() {
            self.uids += 1;
            let uid = old
                .as_ref()
                .map_or(json!(format!("uid-{}", self.uids)), |o| o.value["metadata"]["uid"].clone());
            metadata.insert("uid".to_owned(), uid);
        }
        let stored = Stored { text: object.to_string().into(), value: Arc::new(object) };
        let word = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let shelf = self.shelf_mut(resource);
        shelf.objects.insert(place.clone(), stored.clone());
        shelf.history.push(Happening { version, word, object: stored.clone(), place });
        stored
    }

    /// Removes an object. Whether it was there.
    pub(super) fn remove(&mut self, resource: &Resource, place: &Place) -> bool {
        let Some(old) = self.shelf_mut(resource).objects.remove(place) else { return false };
        self.version += 1;
        let version = self.version;
        let mut value = (*old.value).clone();
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let object = Stored { text: value.to_string().into(), value: Arc::new(value) };
        let gone = Happening { version, word: "DELETED", object, place: place.clone() };
        self.shelf_mut(resource).history.push(gone);
        true
    }

    /// Removes all objects of a resource.
    pub(super) fn clear(&mut self, resource: &Resource) {
        let places: Vec<_> = self.shelf(resource).objects.keys().cloned().collect();
        for place in places {
            self.remove(resource, &place);
        }
    }

    /// One object.
    pub(super) fn get(&self, resource: &Resource, place: &Place) -> Option<&Stored> {
        self.shelf(resource).objects.get(place)
    }

    /// All objects of a resource, in the order of their places.
    pub(super) fn all(&self, resource: &Resource) -> impl Iterator<Item = (&Place, &Stored)> {
        self.shelf(resource).objects.iter()
    }

    /// Names of the custom resources that are installed.
    pub(super) fn definitions(&self) -> BTreeSet<&str> {
        self.shelf(&RESOURCES[0]).objects.keys().map(|(_, name)| name.as_str()).collect()
    }

    /// What happened after this version.
    pub(super) fn since(&self, resource: &Resource, version: u64) -> &[Happening] {
        let history = &self.shelf(resource).history;
        &history[history.partition_point(|h| h.version <= version)..]
    }

    /// Keeps a list for its further pages and tells the version under which it is kept.
    pub(super) fn keep(&mut self, resource: &Resource, list: Arc<Vec<Stored>>) -> u64 {
        let version = self.version;
        self.shelf_mut(resource).snapshots.insert(version, list);
        version
    }

    /// A list that was kept.
    pub(super) fn kept(&self, resource: &Resource, version: u64) -> Option<Arc<Vec<Stored>>> {
        self.shelf(resource).snapshots.get(&version).cloned()
    }

    fn shelf(&self, resource: &Resource) -> &Shelf {
        &self.shelves[&(resource.group, resource.plural)]
    }

    fn shelf_mut(&mut self, resource: &Resource) -> &mut Shelf {
        self.shelves.get_mut(&(resource.group, resource.plural)).expect("a shelf for each resource")
    }
}

/// A patch laid over an object: RFC 7386, and for Kubernetes' own kinds lists of conditions merged by `type`.
pub(super) fn patch(object: &mut Value, patch: &Value, strategic: bool) {
    let (Value::Object(into), Value::Object(fields)) = (&mut *object, patch) else {
        object.clone_from(patch);
        return;
    };
    for (key, value) in fields {
        match (value, into.get_mut(key)) {
            (Value::Null, _) => _ = into.remove(key),
            (Value::Array(new), Some(Value::Array(old))) if strategic && key == "conditions" => {
                for item in new {
                    match old.iter_mut().find(|o| o["type"] == item["type"]) {
                        Some(old) => self::patch(old, item, strategic),
                        None => old.push(item.clone()),
                    }
                }
            }
            (value, Some(old)) => self::patch(old, value, strategic),
            (value, None) => _ = into.insert(key.clone(), value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names() {
        let mut node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "x": 1}});
        let more =
            json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}], "x": null}});
        patch(&mut node, &more, true);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!((conditions.len(), node["status"].get("x")), (2, None));
        patch(&mut node, &more, false);
        assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn history_is_told_from_a_version_on() {
        let mut store = Store::default();
        let namespace =
            |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        store.set(namespace("a")).unwrap();
        let seen = store.version();
        store.set(namespace("b")).unwrap();
        let resource = of_object("v1", "Namespace").unwrap();
        store.remove(resource, &(String::new(), "a".into()));
        let words: Vec<_> =
            store.since(resource, seen).iter().map(|h| (h.word, h.place.1.as_str())).collect();
        assert_eq!(words, [("ADDED", "b"), ("DELETED", "a")]);
        store.move_to(5);
        assert_eq!((store.all(resource).count(), store.version()), (1, 6));
    }
}
