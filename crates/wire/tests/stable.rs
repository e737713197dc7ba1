//! The public API's promise to its clients, as a list: names and numbers that
//! stand in `stable.txt` never change. It says nothing of what they mean.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_wire::inference::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::fmt::Write;

fn files() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file
}

fn messages() -> Vec<DescriptorProto> {
    files().into_iter().flat_map(|file| file.message_type).collect()
}

/// As a proto file would say it.
fn field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => {
            field.type_name().trim_start_matches(".chorale.inference.v1.").to_owned()
        }
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let group = field.oneof_index.filter(|_| !field.proto3_optional());
    let group = group.map(|index| format!(" of {}", message.oneof_decl[index as usize].name()));
    format!("  {label}{kind} {} = {}{}", field.name(), field.number(), group.unwrap_or_default())
}

#[test]
fn names_and_numbers_stay() {
    let mut list = String::new();
    for file in files() {
        writeln!(list, "# {}", file.name()).unwrap();
        for service in &file.service {
            writeln!(list, "service {}", service.name()).unwrap();
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                let [input, output] = [method.input_type(), method.output_type()]
                    .map(|name| name.trim_start_matches(".chorale.inference.v1.").to_owned());
                writeln!(list, "  {}({input}) -> {stream}{output}", method.name()).unwrap();
            }
        }
        for message in &file.message_type {
            writeln!(list, "message {}", message.name()).unwrap();
            for each in &message.field {
                writeln!(list, "{}", field(message, each)).unwrap();
            }
            for nested in message.nested_type.iter().filter(|nested| nested.options.is_some()) {
                let kinds: Vec<String> = nested.field.iter().map(|each| field(nested, each)).collect();
                writeln!(list, "  map {}:{}", nested.name(), kinds.join(",")).unwrap();
            }
        }
        for each in &file.enum_type {
            writeln!(list, "enum {}", each.name()).unwrap();
            for value in &each.value {
                writeln!(list, "  {} = {}", value.name(), value.number()).unwrap();
            }
        }
    }
    expect_test::expect_file!["stable.txt"].assert_eq(&list);
}

#[test]
fn every_message_leaves_numbers_to_others() {
    for message in messages() {
        let reserved =
            message.reserved_range.iter().any(|range| (range.start(), range.end()) == (1000, 2000));
        assert!(reserved, "{} reserves nothing", message.name());
    }
}

#[test]
fn every_enum_begins_with_nothing_said() {
    for each in files().into_iter().flat_map(|file| file.enum_type) {
        let first = &each.value[0];
        assert!(first.number() == 0 && first.name().ends_with("_UNSPECIFIED"), "{}", each.name());
    }
}
