//! The OpenAPI document, written by hand beside this file: it says what clients
//! may rely on, which is less than what the types of this crate happen to be.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// The response of `GET /openapi.json`.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use super::DOCUMENT;
    use crate::server::Route;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn every_route_is_in_it_and_nothing_else() {
        let routes: BTreeSet<(String, String)> = Route::ALL
            .iter()
            .map(|route| (route.path().replace("{*", "{"), route.method().as_str().to_lowercase()))
            .collect();
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
            })
            .collect();
        assert_eq!(documented, routes);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, root: &Value, found: &mut usize) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        let pointer = target.strip_prefix('#').unwrap();
                        assert!(root.pointer(pointer).is_some(), "{target} leads nowhere");
                        *found += 1;
                    }
                    object.values().for_each(|value| walk(value, root, found));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, root, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let document = document();
        let mut found = 0;
        walk(&document, &document, &mut found);
        assert!(found > 20);
    }

    #[test]
    fn the_version_is_the_programs() {
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
