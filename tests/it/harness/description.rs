//! The description of the admin API, against which its answers are held.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and never a panic"
)]

use serde_json::{Map, Value};

use super::{Message, Proxy};

/// `/api/openapi.json`.
#[derive(Debug)]
pub(crate) struct Description(Value);

impl Description {
    /// Asks a proxy for it.
    #[track_caller]
    pub(crate) fn of(proxy: &Proxy) -> Self {
        Self(proxy.admin("/api/openapi.json").json())
    }

    /// Returns what is described, by path and method.
    pub(crate) fn paths(&self) -> &Map<String, Value> {
        self.0["paths"].as_object().expect("paths")
    }

    /// Fails unless an answer is one that is described for this method and path (with its `{name}`).
    #[track_caller]
    pub(crate) fn holds(&self, method: &str, path: &str, answer: &Message) {
        let status = answer.status().to_string();
        let described = &self.0["paths"][path][method]["responses"][&status];
        assert!(
            described.is_object(),
            "{method} {path}: {status} is not described: {answer:?}"
        );
        let kind = answer.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let content = &described["content"][kind];
        assert!(
            content.is_object(),
            "{method} {path} {status}: {kind} is not described"
        );
        if kind.ends_with("json") {
            let at = format!("{method} {path}");
            let matched = self.matches(&content["schema"], &answer.json(), &at);
            assert_eq!(matched, Ok(()));
        }
    }

    /// Holds a value against the part of JSON Schema that the description uses. Members that are not
    /// described are a mistake, too.
    fn matches(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.trim_start_matches("#/components/schemas/");
            let named = self.0.pointer(&format!("/components/schemas/{name}"));
            let named = named.ok_or_else(|| format!("{at}: {reference} is nothing"))?;
            return self.matches(named, value, at);
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let mut tried = any.iter().map(|one| self.matches(one, value, at));
            let mut wrong = Vec::new();
            return match tried.find_map(|one| one.map_err(|why| wrong.push(why)).ok()) {
                Some(()) => Ok(()),
                None => Err(wrong.join("; or ")),
            };
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let own = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_u64() && types.contains(&"integer") => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if !types.contains(&own) {
            return Err(format!("{at}: {value} is {own}, not {types:?}"));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            return Err(format!("{at}: {value} is none of {allowed:?}"));
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().unwrap_or_default();
            if value.get(name).is_none() {
                return Err(format!("{at}: `{name}` is missing in {value}"));
            }
        }
        for item in value.as_array().into_iter().flatten() {
            self.matches(&schema["items"], item, &format!("{at}[]"))?;
        }
        if let Some(properties) = schema["properties"].as_object() {
            for (name, member) in value.as_object().into_iter().flatten() {
                let described = properties.get(name);
                let described =
                    described.ok_or_else(|| format!("{at}: `{name}` is not described"))?;
                self.matches(described, member, &format!("{at}.{name}"))?;
            }
        }
        Ok(())
    }
}
