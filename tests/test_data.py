"""From folders of files to batches: repairs, quality, pools, cache, loader,
augmentation.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import kit.images
import utils
from kit import datasets
from kit.images import inspect_image, quality_report


def flags(index: pd.DataFrame, name: str) -> set:
    row = index.loc[index["path"].str.endswith(name), "flags"]
    return set(row.item().split(";")) - {"", "gray_as_rgb"}


def xray(raw: Path, number=0, split="train", label="PNEUMONIA") -> Path:
    """A healthy drawn file, away from the planted faults."""
    return sorted((raw / "chest_xray" / split / label).iterdir())[12 + number]


# --- the archive's traps


def test_traps_of_the_archive_are_repaired_and_reported(raw, open_course):
    place = raw / "chest_xray"
    clean = utils.build_index(open_course(source=raw, home=raw / "clean"))
    shutil.copytree(place, raw / "second")
    shutil.move(raw / "second", place / "chest_xray")
    litter = place / "__MACOSX" / "train" / "NORMAL"
    litter.mkdir(parents=True)
    (litter / "._IM-0001-0001.jpeg").write_bytes(b"\0\5\x16\7")
    (place / "train" / "NORMAL" / "._IM-0001-0001.jpeg").write_bytes(b"\0\5\x16\7")
    (place / "train" / ".DS_Store").write_bytes(b"Bud1")
    (place / "val" / "NORMAL").mkdir(parents=True)
    moved = xray(raw, label="NORMAL")
    shutil.move(moved, place / "val" / "NORMAL" / moved.name)
    shutil.rmtree(place / "chest_xray" / "train" / "NORMAL")
    index = utils.build_index(open_course(source=raw))
    repairs = pd.DataFrame(index.attrs["repairs"]).set_index("what")["files"]
    copies = len(list((place / "chest_xray").rglob("*.jpeg")))
    assert repairs["second copy of an image"] == copies
    assert repairs["hidden files and litter of systems"] == 3
    assert repairs["images of the tiny val/ folder"] == 1
    assert len(index) == len(clean)
    assert index.loc[index["path"].str.endswith(moved.name), "split"].item() == "train"


def test_rgb_mode_grayscale_is_reported_and_read_as_one_channel(raw, open_course):
    Image.open(xray(raw)).convert("RGB").save(xray(raw), "JPEG")
    index = utils.build_index(open_course(source=raw))
    row = index[index["path"].str.endswith(xray(raw).name)].iloc[0]
    assert row["mode"] == "RGB" and "gray_as_rgb" in row["flags"] and row["pool"] != ""
    assert utils.decode(xray(raw), 32, 1).shape == (1, 32, 32)


def test_patient_key_is_subtype_and_person():
    names = [
        "person1_bacteria_1.jpeg",
        "person1_bacteria_2.jpeg",
        "person1_virus_6.jpeg",
        "IM-0115-0001.jpeg",
        "NORMAL2-IM-0115-0001.jpeg",
    ]
    folders = ["PNEUMONIA"] * 3 + ["NORMAL"] * 2
    files = pd.DataFrame(
        {
            "path": [f"train/{f}/{n}" for f, n in zip(folders, names, strict=True)],
            "folder": folders,
            "split": "train",
        }
    )
    table = datasets.label_images(files, Path("/nowhere"), "pneumonia")
    assert table["patient"].nunique() == 4
    assert table["patient"][0] == table["patient"][1] != table["patient"][2]
    assert table["subtype"].tolist() == [
        "BACTERIA",
        "BACTERIA",
        "VIRUS",
        "NORMAL",
        "NORMAL",
    ]


def test_three_classes(open_course):
    course = open_course("pneumonia3")
    index = utils.build_index(course)
    assert set(index["label"]) == {"NORMAL", "BACTERIA", "VIRUS"} == set(course.classes)
    data = utils.load_data(course)
    assert set(data.labels) == {0, 1, 2}


@pytest.mark.parametrize("names", [("Panel", "No_Panel"), ("1", "0")])
def test_other_folder_names_of_roofs(raw, open_course, names):
    place = raw / "solar_panels"
    for old, new in zip(("positive", "negative"), names, strict=True):
        (place / old).rename(place / new)
    index = utils.build_index(open_course("solar", source=raw))
    assert (index.loc[index["path"].str.startswith(names[0]), "label"] == "PANEL").all()


def test_unknown_folder_names_are_asked_for(raw, open_course):
    place = raw / "solar_panels"
    (place / "positive").rename(place / "mit")
    (place / "negative").rename(place / "ohne")
    course = open_course("solar", source=raw)
    with pytest.raises(
        utils.CourseError, match="which is which is unknown: write .*classes.json"
    ):
        utils.build_index(course)
    (place / "classes.json").write_text(
        json.dumps({"mit": "PANEL", "ohne": "NO_PANEL"})
    )
    index = utils.build_index(course)
    assert (index.loc[index["path"].str.startswith("mit"), "label"] == "PANEL").all()


def test_corrected_mapping_is_read_again(raw, open_course):
    place = raw / "solar_panels"
    (place / "classes.json").write_text(
        json.dumps({"positive": "NO_PANEL", "negative": "PANEL"})
    )
    course = open_course("solar", source=raw)
    wrong = utils.build_index(course)["label"]
    (place / "classes.json").unlink()
    assert (utils.build_index(course)["label"] != wrong).all()


def test_images_left_out_are_reported(raw, open_course):
    roofs, xrays = raw / "solar_panels", raw / "chest_xray"
    (roofs / "unsure").mkdir()
    first, second, third = sorted((roofs / "positive").iterdir())[10:13]
    shutil.copy(first, roofs / "unsure" / "a.jpg")
    (roofs / "more" / "positive").mkdir(parents=True)
    shutil.copy(second, roofs / "more" / "positive" / second.name)
    # its name, another picture
    shutil.copy(first, roofs / "more" / "positive" / third.name)
    index = utils.build_index(open_course("solar", source=raw))
    assert {row["what"]: row["files"] for row in index.attrs["repairs"]} == {
        "second copy of an image": 1,
        "two images of one name": 1,
        "images in folders of no known class (unsure 1)": 1,
    }
    shutil.copytree(xrays / "train" / "NORMAL", xrays / "extra" / "NORMAL")
    (xrays / "again" / "train" / "NORMAL").mkdir(parents=True)
    shutil.copy(
        xray(raw, 1, label="NORMAL"),
        xrays / "again" / "train" / "NORMAL" / xray(raw, 0, label="NORMAL").name,
    )
    index = utils.build_index(open_course(source=raw, home=raw / "other"))
    count = len(list((xrays / "train" / "NORMAL").iterdir()))
    assert {row["what"]: row["files"] for row in index.attrs["repairs"]} == {
        "images outside train/ and test/": count,
        "second copy that differs": 1,
    }


# --- bad datasets


@pytest.mark.parametrize("gone", ["missing", "empty"])
def test_missing_or_empty_class_folder(raw, open_course, gone):
    for split in ("train", "test"):
        folder = raw / "chest_xray" / split / "NORMAL"
        shutil.rmtree(folder)
        if gone == "empty":
            folder.mkdir()
    course = open_course(source=raw)
    with pytest.raises(
        utils.CourseError,
        match=r"no images of class NORMAL \(class folders found: PNEUMONIA\)",
    ):
        utils.build_index(course)
    assert not (course.data / "index.csv").exists()


def test_no_images_at_all(raw, open_course):
    shutil.rmtree(raw / "chest_xray" / "train")
    shutil.rmtree(raw / "chest_xray" / "test")
    with pytest.raises(utils.CourseError, match="holds no images in class folders"):
        utils.build_index(open_course(source=raw))


def test_too_few_images_of_a_class(raw, open_course):
    for path in sorted((raw / "chest_xray" / "train" / "NORMAL").iterdir())[3:]:
        path.unlink()
    with pytest.raises(
        utils.CourseError, match="would get no image of class NORMAL.*add some"
    ):
        utils.build_index(open_course(source=raw))


def test_no_image_can_be_read(raw, open_course):
    for path in (raw / "chest_xray").rglob("*.jpeg"):
        path.write_text("<html>Sign in</html>")
    with pytest.raises(
        utils.CourseError,
        match="None of the 121 images can be read.*delete the dataset folder",
    ):
        utils.build_index(open_course(source=raw))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_picture_of_more_than_eight_bits_is_refused_not_cut_off_at_white(
    tmp_path, kind
):
    """PIL clips such values at 255 instead of scaling them."""
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.linspace(0, 60_000, 64 * 64).reshape(64, 64).astype(kind)).save(
        path
    )
    with pytest.raises(
        OSError, match="more than 8 bits a channel: save it with 8 bits"
    ):
        utils.decode(path, 32, 1)
    assert inspect_image(path)["flags"] == ["unreadable"]


def test_odd_sizes_odd_modes_and_rare_classes_are_reported(raw, open_course):
    banner, palette = xray(raw, 0), xray(raw, 1).with_suffix(".png")
    Image.open(banner).resize((900, 90)).save(banner)
    Image.open(xray(raw, 1)).convert("RGBA").save(palette)
    xray(raw, 1).unlink()
    index = utils.build_index(open_course(source=raw))
    assert flags(index, banner.name) == {"odd_size"} and flags(index, palette.name) == {
        "odd_mode"
    }
    assert index["flags"].str.contains("odd").sum() == 2
    report = quality_report(index).set_index("problem")
    usable = index[index["pool"] != ""]
    assert (
        report.loc["few images of NORMAL", "images"]
        == (usable["label"] == "NORMAL").sum()
    )
    assert report.loc["odd_size", "images"] == 1


def test_bad_files_are_flagged_and_excluded(raw, open_course):
    cut, empty, text, moving = (xray(raw, i) for i in range(4))
    cut.write_bytes(cut.read_bytes()[:600])
    empty.write_bytes(b"")
    text.write_text("no image")
    frames = [Image.fromarray(np.full((64, 64), v, np.uint8)) for v in (40, 90, 200)]
    gif = moving.with_suffix(".gif")
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((90, 90), 7, np.uint8)).save(xray(raw, 4))
    index = utils.build_index(open_course(source=raw))
    for path in (cut, empty, text):
        assert flags(index, path.name) == {"unreadable"}
    assert "animated" in flags(index, gif.name)
    assert "blank" in flags(index, xray(raw, 4).name)
    bad = index["path"].str.contains(
        "|".join(p.stem for p in (cut, empty, text))
    ) | index["path"].str.endswith(".gif")
    assert (index.loc[bad, "pool"] == "").all()


def test_copies_are_found_and_kept_out_or_together(raw, open_course):
    original, resized, tested = xray(raw), xray(raw, 1), xray(raw, 0, "test")
    shutil.copy(original, original.with_name("person700_bacteria_1.jpeg"))
    picture = Image.open(resized)
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(
        resized.with_name("person701_virus_1.jpeg")
    )
    shutil.copy(tested, original.with_name("person702_bacteria_1.jpeg"))
    shutil.copy(original, xray(raw, 2, label="NORMAL").with_name("IM-0700-0001.jpeg"))
    index = utils.build_index(open_course(source=raw))
    # the same picture stands in both classes
    assert "conflicting_label" in flags(index, original.name)
    assert "near_duplicate" in flags(index, "person701_virus_1.jpeg")
    group = index.set_index(index["path"].str.split("/").str[-1])["group"]
    assert group["person701_virus_1.jpeg"] == group[resized.name]
    assert {"exact_duplicate", "leak_into_test"} <= flags(
        index, "person702_bacteria_1.jpeg"
    )
    assert index.loc[index["path"].str.endswith(tested.name), "pool"].item() == "test"


def test_patient_in_train_and_test_is_a_leak(raw, open_course):
    number, kind, _ = xray(raw, -9, "test").name.split("_")
    shutil.copy(xray(raw, 5), xray(raw).with_name(f"{number}_{kind}_99999.jpeg"))
    index = utils.build_index(open_course(source=raw))
    assert "leak_into_test" in flags(index, f"{number}_{kind}_99999.jpeg")


def test_sibling_of_a_test_image_is_kept_out(raw, open_course):
    """A and B are one patient, B looks like test image C: A may not be used either."""
    tested = xray(raw, -5, "test")
    picture = Image.open(tested)
    smaller = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
    smaller.save(xray(raw).with_name("person800_virus_1.jpeg"))
    shutil.copy(xray(raw), xray(raw).with_name("person800_virus_2.jpeg"))
    xray(raw).unlink()
    index = utils.build_index(open_course(source=raw)).set_index("path")
    for name in ("person800_virus_1", "person800_virus_2"):
        row = index.loc[f"train/PNEUMONIA/{name}.jpeg"]
        assert "leak_into_test" in row["flags"] and row["pool"] == ""
    assert (index[index["pool"] != ""].groupby("group")["pool"].nunique() == 1).all()


# --- pools


def made_up_index(patients=900, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, patients)
    kinds = rng.choice(["NORMAL", "BACTERIA", "VIRUS"], patients, p=[0.3, 0.4, 0.3])
    group = np.repeat(np.arange(patients), sizes)
    split = np.where(np.isin(group, np.arange(100)), "test", "train")
    subtype = kinds[group]
    return pd.DataFrame(
        {
            "path": [f"{i}.jpeg" for i in range(len(group))],
            "group": group,
            "patient": group,
            "subtype": subtype,
            "label": np.where(subtype == "NORMAL", "NORMAL", "PNEUMONIA"),
            "split": split,
            "flags": "",
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_pools_are_grouped_stratified_and_of_the_stated_size(seed):
    table = utils.assign_pools(made_up_index(seed=seed), seed)
    assert (table.groupby("group")["pool"].nunique() == 1).all()
    assert (table.loc[table["split"] == "test", "pool"] == "test").all()
    rest = table[table["split"] != "test"]
    share = rest["pool"].value_counts(normalize=True)
    for pool, wanted in utils.POOLS.items():
        assert share[pool] == pytest.approx(wanted, abs=0.01)
    kinds = pd.crosstab(rest["pool"], rest["subtype"], normalize="index")
    assert (
        kinds - rest["subtype"].value_counts(normalize=True)
    ).abs().to_numpy().max() < 0.03


def test_pools_depend_on_the_seed_alone():
    table = made_up_index()
    first, again, other = (utils.assign_pools(table, s)["pool"] for s in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)


@pytest.mark.parametrize("dataset", ["pneumonia", "pneumonia3", "solar"])
def test_no_patient_and_no_duplicate_crosses_pools(open_course, dataset):
    index = utils.build_index(open_course(dataset))
    usable = index[index["pool"] != ""]
    assert set(usable["pool"]) == {"test", *utils.POOLS}
    for key in ("group", "sha256", "patient"):
        assert (usable.groupby(key)["pool"].nunique() == 1).all()


def test_index_is_read_again_only_when_a_file_has_changed(
    raw, open_course, monkeypatch
):
    course, reads = open_course(source=raw), []
    monkeypatch.setattr(
        kit.images,
        "inspect_image",
        lambda path: reads.append(path) or inspect_image(path),
    )
    first = utils.build_index(course)
    count = len(reads)
    assert utils.build_index(course).equals(first) and len(reads) == count
    xray(raw).unlink()
    assert len(utils.build_index(course)) == len(first) - 1


def test_damaged_index_is_made_again(open_course):
    course = open_course()
    first = utils.build_index(course)
    path = course.data / "index.csv"
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    assert utils.build_index(course).equals(first)
    (course.data / "index.json").write_text('{"key": ["cut')
    assert utils.build_index(course).equals(first)
    # nothing in .attrs that pandas cannot compare
    assert len(pd.concat([first[:3], first[3:]])) == len(first)


def test_perceptual_hash_sees_likeness_not_size():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (60, 16, 16)).astype(np.uint8)
    pictures = np.stack(
        [np.asarray(Image.fromarray(c).resize((32, 32), 3)) for c in coarse]
    )
    noisy = np.clip(pictures + rng.normal(0, 1, pictures.shape), 0, 255).astype(
        np.uint8
    )
    pairs = utils.near_duplicates(np.concatenate([pictures, noisy]))
    assert set(pairs) == {(i, i + 60) for i in range(60)}


# --- cache


def cache_file(course) -> Path:
    return next((course.local / "data" / course.dataset / "cache").glob("*.npy"))


def test_cache_holds_what_decode_gives(data):
    assert data.pixels.dtype == np.uint8 and data.pixels.shape[1:] == (1, 32, 32)
    for row in (0, 17, len(data.labels) - 1):
        path = data.course.root / data.index["path"][row]
        assert (data.pixels[row] == utils.decode(path, 32, 1)).all()
    train = data.pixels[data.where("train")] / 255
    assert data.mean == pytest.approx([train.mean()]) and data.std == pytest.approx(
        [train.std()]
    )


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_cache_is_rebuilt(data, damage):
    path, before = cache_file(data.course), data.pixels.copy()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-1] ^= 255
    path.unlink()
    path.write_bytes(content)
    assert (utils.load_data(data.course).pixels == before).all()


def test_cache_follows_the_content_of_the_images(raw, open_course):
    course = open_course(source=raw)
    utils.build_index(course)
    before = utils.load_data(course).pixels.copy()
    Image.open(xray(raw)).rotate(180).save(xray(raw))
    utils.build_index(course)
    assert (utils.load_data(course).pixels != before).any()


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: Image.open(path).rotate(180).save(path)]
)
def test_image_that_has_gone_or_changed_since_it_was_indexed(raw, open_course, change):
    course = open_course(source=raw)
    utils.build_index(course)
    change(xray(raw))
    with pytest.raises(
        utils.CourseError,
        match="has gone or changed since it was indexed.*theme1_data_analysis",
    ):
        utils.load_data(course)
    assert not list((course.local / "data" / course.dataset / "cache").glob("*.npy"))


# --- loader and augmentation


def test_batches_are_normalised_floats_of_every_row_once(data):
    seen = []
    for images, labels in data.loader("train", 16, shuffle=True):
        assert (
            images.dtype == torch.float32
            and images.shape[1:] == (1, 32, 32)
            and labels.dtype == torch.int64
        )
        seen.append(images)
    rows = data.where("train")
    expected = (data.pixels[rows] / 255 - data.mean[0]) / data.std[0]
    assert np.sort(torch.cat(seen).sum((1, 2, 3)).numpy()) == pytest.approx(
        np.sort(expected.sum((1, 2, 3))), abs=1e-2
    )
    assert abs(torch.cat(seen).mean()) < 1e-4 and torch.cat(
        seen
    ).std().item() == pytest.approx(1, abs=1e-3)


def test_only_training_is_shuffled_or_augmented(data):
    for pool in ("val", "test", "gate"):
        with pytest.raises(utils.CourseError, match="is for measuring"):
            data.loader(pool, augment=utils.AUGMENT["pneumonia"])
        with pytest.raises(utils.CourseError, match="is for measuring"):
            data.loader(pool, shuffle=True)
    plain, again = (torch.cat([x for x, _ in data.loader("test", 7)]) for _ in range(2))
    assert torch.equal(plain, again)


def test_fewer_images_than_a_batch(data, capsys):
    count = len(data.where("train"))
    loader = data.loader("train", 10_000, shuffle=True)
    assert "fewer than a batch of 10000" in capsys.readouterr().out
    assert [len(labels) for _, labels in loader] == [count]


def test_every_epoch_differs_and_is_reproducible(data):
    def epochs(n):
        loader = data.loader("train", 16, utils.AUGMENT["pneumonia"], shuffle=True)
        return [torch.cat([x for x, _ in loader]) for _ in range(n)]

    first, second = epochs(2), epochs(2)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])


def test_an_epoch_can_go_on_in_the_middle(data):
    loader = data.loader("train", 16, utils.AUGMENT["pneumonia"], shuffle=True)
    whole = [x for x, _ in loader]
    loader.epoch, loader.first_batch = 0, 2
    rest = [x for x, _ in loader]
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_one_draw_per_sample_whatever_the_batch(data):
    rows = np.repeat(data.where("train")[:1], 24)
    small, large = (
        torch.cat(
            [
                x
                for x, _ in utils.BatchLoader(
                    data, rows, size, utils.AUGMENT["pneumonia"], False
                )
            ]
        )
        for size in (4, 24)
    )
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-5)
    differences = [
        (large[i] - large[j]).abs().mean().item() for i in range(24) for j in range(i)
    ]
    assert min(differences) > 0.01  # one image, 24 different pictures


def test_augmentation_of_nothing_changes_nothing():
    images = torch.rand(5, 3, 40, 40)
    draws = utils.draw_augmentation(5, {}, torch.Generator().manual_seed(0))
    torch.testing.assert_close(utils.augment(images, draws), images, atol=1e-4, rtol=0)


def test_shift_and_mirror_move_pixels_and_blur_none():
    images = torch.rand(40, 1, 32, 32)
    draws = utils.draw_augmentation(
        40, {"shift": 0.1, "flip": True}, torch.Generator().manual_seed(0)
    )
    moved = utils.augment(images, draws)
    found = set()
    for n, (before, after) in enumerate(zip(images, moved, strict=True)):
        x, y = (round(draws[axis][n].item() * 32) for axis in "xy")
        mirrored = bool(draws["mirror"][n] < 0)
        sideways = torch.roll(
            torch.flip(before, [2]) if mirrored else before,
            (-y, x if mirrored else -x),
            (1, 2),
        )
        torch.testing.assert_close(
            after[:, 4:-4, 4:-4], sideways[:, 4:-4, 4:-4], atol=1e-3, rtol=0
        )
        found.add((x != 0, y != 0, mirrored))
    assert {(True, True, True), (True, True, False)} <= found


def one_effect(images: torch.Tensor, **given) -> torch.Tensor:
    """augment() with every draw at rest but those given."""
    draws = utils.draw_augmentation(len(images), {}, torch.Generator().manual_seed(0))
    return utils.augment(
        images,
        draws
        | {name: torch.full((len(images),), value) for name, value in given.items()},
    )


def test_light_contrast_and_gamma_by_their_formulas():
    x = torch.rand(4, 3, 24, 24) * 0.5 + 0.25
    mean = x.mean(dim=(2, 3), keepdim=True)
    for result, expected in (
        (one_effect(x, brightness=0.1), x + 0.1),
        (one_effect(x, contrast=0.7), (x - mean) * 0.7 + mean),
        (one_effect(x, gamma=1.4), x**1.4),
    ):
        torch.testing.assert_close(result, expected.clamp(0, 1), atol=2e-4, rtol=0)


def test_turn_zoom_and_stretch_move_pixels_where_they_should():
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(
        one_effect(x, angle=np.pi / 2), torch.rot90(x, 1, (2, 3)), atol=1e-3, rtol=0
    )
    dot = torch.zeros(1, 1, 65, 65)
    dot[0, 0, 31:34, 47:50] = 1  # 16 pixels right of the middle
    for given, distance in (
        ({"scale": 1.25}, 20),
        ({"stretch": 1.25}, 20),
        ({"stretch": 0.75}, 12),
    ):
        row, column = divmod(int(one_effect(dot, **given).argmax()), 65)
        assert abs(row - 32) <= 1 and abs(column - 32 - distance) <= 1
    tall = torch.zeros(1, 1, 65, 65)
    tall[0, 0, 47:50, 31:34] = 1
    assert abs(int(one_effect(tall, stretch=1.25).argmax()) // 65 - 32 - 16 / 1.25) <= 1


def test_blur_noise_and_hole():
    x = torch.rand(3, 1, 32, 32)
    soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(one_effect(x, blur=1.0), soft, atol=2e-4, rtol=0)
    grey = torch.full((3, 1, 32, 32), 0.5)
    noisy = one_effect(grey, noise=0.05)
    assert (
        noisy.std().item() == pytest.approx(0.05, rel=0.1)
        and abs(noisy.mean() - 0.5) < 0.01
    )
    holed = one_effect(x, erase=0.5, place_x=0.5, place_y=0.5)
    inside = holed[:, :, 9:23, 9:23]
    torch.testing.assert_close(
        inside, x.mean(dim=(2, 3), keepdim=True).expand_as(inside), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(holed[:, :, :7], x[:, :, :7], atol=2e-4, rtol=0)


@pytest.mark.parametrize("dataset", utils.AUGMENT)
@pytest.mark.parametrize("size", [32, 600])
def test_augmentation_keeps_shape_and_range_and_draws_each_effect(dataset, size):
    ranges = dict(utils.AUGMENT[dataset])
    draws = utils.draw_augmentation(3000, ranges, torch.Generator().manual_seed(0))
    spread = {"rotate": ("angle", np.pi / 180), "zoom": ("scale", 1), "shift": ("x", 1)}
    if ranges.pop("turn", False):
        quarters = torch.round(draws["angle"] / (np.pi / 2))
        assert torch.bincount(quarters.long() % 4).min() > 600
        draws["angle"] = draws["angle"] - quarters * np.pi / 2
    for effect in set(ranges) - {"flip", "affine"}:
        name, unit = spread.get(effect, (effect, 1))
        values = (
            torch.log(draws[name]) if effect in ("gamma", "stretch") else draws[name]
        )
        values = values - float(name in ("scale", "contrast"))
        assert (
            0.9 * ranges[effect] * unit
            < values.abs().max()
            <= ranges[effect] * unit * 1.0001
        )
    few = {name: values[:4] for name, values in draws.items()}
    images = torch.rand(4, 3, size, size) * 0.6 + 0.2
    out = utils.augment(images, few)
    assert (
        out.shape == images.shape
        and out.min() >= 0
        and out.max() <= 1
        and out.isfinite().all()
    )


def test_decode_gives_the_mean_colour_and_the_right_channels(tmp_path):
    Image.new("RGB", (500, 300), (200, 100, 50)).save(tmp_path / "a.png")
    pixels = utils.decode(tmp_path / "a.png", 48, 3)
    assert pixels.shape == (3, 48, 48) and pixels.dtype == np.uint8
    assert pixels.reshape(3, -1).mean(1).tolist() == [200, 100, 50]
    assert utils.decode(tmp_path / "a.png", 48, 1).shape == (1, 48, 48)


# --- getting the data


def test_a_source_is_what_was_asked_for(tmp_path, open_course):
    utils.start(1, source="sample", profile="smoke", home=tmp_path / "home")
    (tmp_path / "home" / "course.json").unlink()
    with pytest.raises(
        utils.CourseError, match="already holds drawn images.*choose another HOME"
    ):
        utils.start(1, source="kaggle", profile="smoke", home=tmp_path / "home")
    with pytest.raises(utils.CourseError, match="was not drawn with"):
        utils.start(1, source="sample", profile="smoke", seed=7, home=tmp_path / "home")
