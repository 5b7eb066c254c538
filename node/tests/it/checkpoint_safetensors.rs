//! Parameters to and from safetensors files; the reader here is the crate that other programs use.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use p2ptrain_kernels::program::{BlockInfo, Init, ParamInfo};
use p2ptrain_kernels::shape::Shape;
use p2ptrain_node::checkpoint::{Alias, ExportError, ImportError, export, import};
use p2ptrain_node::job::{GptSpec, ModelSpec};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::checkpoint::damage;
use crate::data::folder;

fn tensor(name: &str, block: usize, offset: usize, shape: &[usize]) -> ParamInfo {
    let (name, shape) = (name.to_owned(), Shape::new(shape));
    ParamInfo { name, block, offset, shape, decay: true, init: Init::Zeros }
}

fn blocks() -> [BlockInfo; 2] {
    [14, 3].map(|len| BlockInfo { name: String::new(), len })
}

/// A model of two blocks, the first with two parameters.
fn model() -> (Vec<Vec<f32>>, Vec<ParamInfo>) {
    let params =
        vec![(0..14).map(|i| i as f32 / 4.0).collect(), vec![-1.5, f32::MIN_POSITIVE, 3e38]];
    let tensors = vec![
        tensor("transformer.wte.weight", 0, 0, &[4, 3]),
        tensor("transformer.ln_f.weight", 0, 12, &[2]),
        tensor("head.bias", 1, 0, &[3]),
    ];
    (params, tensors)
}

fn tied() -> Vec<Alias> {
    Alias::of_model(&ModelSpec::Gpt(GptSpec::default()))
}

fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn problems(path: &Path, aliases: &[Alias]) -> Vec<String> {
    match import(path, &blocks(), &model().1, aliases) {
        Err(ImportError::Mismatch { problems, .. }) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exported_file_reads_back_by_names_shapes_and_values() {
    let place = folder();
    let path = place.path().join("model.safetensors");
    let (params, tensors) = model();
    let about = BTreeMap::from([("p2ptrain.step".to_owned(), "40".to_owned())]);
    export(&path, &params, &tensors, &tied(), &about).expect("writable");

    let bytes = fs::read(&path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("a whole file");
    let mut names = file.names();
    names.sort();
    let expected =
        ["head.bias", "lm_head.weight", "transformer.ln_f.weight", "transformer.wte.weight"];
    assert_eq!(names, expected);
    let wte = file.tensor("transformer.wte.weight").expect("it is there");
    assert_eq!((wte.dtype(), wte.shape()), (Dtype::F32, [4, 3].as_slice()));
    assert_eq!(wte.data(), raw(&params[0][..12]));
    assert_eq!(file.tensor("lm_head.weight").expect("it is there").data(), wte.data());
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a whole file");
    let metadata = metadata.metadata().as_ref().expect("metadata");
    assert_eq!((metadata["format"].as_str(), metadata["p2ptrain.step"].as_str()), ("pt", "40"));
    assert_eq!((header + 8) % 8, 0, "tensors are aligned");
    assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 1, "no leftovers");

    let back = import(&path, &blocks(), &tensors, &tied()).expect("the same model");
    assert_eq!(back, params);
}

#[test]
fn names_that_are_not_there_or_there_twice_are_errors() {
    let place = folder();
    let path = place.path().join("model.safetensors");
    let (params, mut tensors) = model();
    tensors[1].name = tensors[2].name.clone();
    let none = BTreeMap::new();
    let twice = export(&path, &params, &tensors, &[], &none).expect_err("one name twice");
    assert!(matches!(twice, ExportError::Twice { .. }), "{twice}");
    let alias = Alias { name: "a".to_owned(), of: "b".to_owned() };
    let missing = export(&path, &params, &tensors, &[alias], &none).expect_err("no such name");
    assert!(missing.to_string().contains("no parameter \"b\""), "{missing}");
    let denied = export(Path::new("/proc/x/y"), &params, &model().1, &[], &none);
    assert!(matches!(denied, Err(ExportError::Disk(_))));
}

#[test]
fn half_precision_files_of_other_programs_are_initial_weights() {
    let place = folder();
    let path = place.path().join("other.safetensors");
    let wte: Vec<u8> = (0..12).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()).collect();
    let norm: Vec<u8> =
        [0.5, -2.0].into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect();
    let bias = raw(&[1.0, 2.0, 3.0]);
    let mask = vec![0; 4];
    let view =
        |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).expect("fits");
    let views: HashMap<&str, TensorView<'_>> = HashMap::from([
        ("transformer.wte.weight", view(Dtype::BF16, &[4, 3], &wte)),
        ("transformer.ln_f.weight", view(Dtype::F16, &[2], &norm)),
        ("head.bias", view(Dtype::F32, &[3], &bias)),
        ("transformer.h.0.attn.bias", view(Dtype::U8, &[4], &mask)),
    ]);
    safetensors::serialize_to_file(views, None, &path).expect("writable");
    let params = import(&path, &blocks(), &model().1, &tied()).expect("the same model");
    let wte: Vec<f32> = (0..12).map(|i| i as f32).collect();
    assert_eq!(params, [[wte, vec![0.5, -2.0]].concat(), vec![1.0, 2.0, 3.0]]);
}

#[test]
fn a_file_of_another_model_is_refused_with_each_difference() {
    let place = folder();
    let path = place.path().join("other.safetensors");
    let (params, mut tensors) = model();
    tensors[0].shape = Shape::new([3, 4]);
    tensors[1].name = "unknown".to_owned();
    export(&path, &params, &tensors, &[], &BTreeMap::new()).expect("writable");
    assert_eq!(
        problems(&path, &[]),
        [
            "transformer.wte.weight has shape [3, 4] instead of [4, 3]",
            "transformer.ln_f.weight is missing",
            "unknown is not in the model",
        ]
    );
}

#[test]
fn an_untied_file_is_no_tied_model() {
    let place = folder();
    let path = place.path().join("other.safetensors");
    let (mut params, mut tensors) = model();
    params.push(vec![9.0; 12]);
    tensors.push(tensor("lm_head.weight", 2, 0, &[4, 3]));
    export(&path, &params, &tensors, &[], &BTreeMap::new()).expect("writable");
    let problems = problems(&path, &tied());
    assert!(problems[0].contains("set model.tied = false"), "{problems:?}");
}

#[test]
fn damaged_files_are_refused_whatever_the_damage() {
    let place = folder();
    let path = place.path().join("model.safetensors");
    let (params, tensors) = model();
    let write = || export(&path, &params, &tensors, &[], &BTreeMap::new()).expect("writable");
    write();
    let length = fs::metadata(&path).expect("it exists").len() as usize;
    for bytes in 0..length {
        write();
        damage(&path, |content| content.truncate(bytes));
        let result = import(&path, &blocks(), &tensors, &[]);
        assert!(matches!(result, Err(ImportError::Format { .. })), "{bytes} bytes");
    }
    for (at, value) in [(0, 0xff), (3, 0xff), (7, 0x7f), (8, b'x'), (40, 0xff)] {
        write();
        damage(&path, |content| content[at] = value);
        let error = import(&path, &blocks(), &tensors, &[]).expect_err("damaged").to_string();
        assert!(error.contains("model.safetensors is no whole safetensors file"), "{error}");
    }
}
