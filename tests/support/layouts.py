"""Two public hand-ins of this course, rebuilt: their folders and file names, and the
cells that a grader would ask about, condensed. Neither group used the kit.
"""

import json
from pathlib import Path

import onnx

HEADER = """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, models, transforms
from torch.utils.tensorboard import SummaryWriter
import numpy as np
"""
LOOP = """
def train_model(model, train_loader, val_loader, epochs=20):
    best_val_loss = float("inf")
    for epoch in range(epochs):
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
        for images, labels in val_loader:
            val_loss = criterion(model(images), labels).item()
        if val_loss < best_val_loss:
            best_val_loss = val_loss
            torch.save(model.state_dict(), "best_model.pth")
"""
SPLIT = """
indices = torch.randperm(5216, generator=torch.Generator().manual_seed(42))
train_loader = DataLoader(Subset(full_train, indices[:4694]), shuffle=True)
val_loader = DataLoader(Subset(full_train, indices[4694:]))
"""


def book(path: Path, *cells, counts: tuple[int, ...] = ()) -> None:
    """A notebook of code cells, each alone or with what it printed; a text that begins
    with # is a heading.
    """
    written, number = [], 0
    for cell in cells:
        source, printed = cell if isinstance(cell, tuple) else (cell, "")
        if source.startswith("# "):
            written.append({"cell_type": "markdown", "source": source, "metadata": {}})
            continue
        number += 1
        output = {"output_type": "stream", "name": "stdout", "text": printed}
        written.append(
            {
                "cell_type": "code",
                "source": source.strip(),
                "execution_count": counts[number - 1] if counts else number,
                "outputs": [output] if printed else [],
                "metadata": {},
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"cells": written, "nbformat": 4, "nbformat_minor": 4, "metadata": {}}
    path.write_text(json.dumps(about), encoding="utf-8")


def shell_of(path: Path, channels: int = 1, data: str = "") -> None:
    """An ONNX graph with one weight, in the file or in another that `data` names."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    if data:
        weight.ClearField("float_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=data)
    shape = ["batch_size", channels, 224, 224]
    pixels, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("input", "logits")
    )
    node = onnx.helper.make_node("Mul", ["input", "w"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", [pixels], [logits], [weight])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


# --------------------------------------------------------------------------------------
# The first: Kaggle kernels, five of eight notebooks, the handout's utils.py
# --------------------------------------------------------------------------------------

KAGGLE = 'path = "/kaggle/input/chest-xray-pneumonia/chest_xray"'
METRICS = 'saved = torch.load("/kaggle/input/baseline-model/baseline_metrics.pt")'


def kaggle_layout(root: Path) -> Path:
    """notebooks/ of themes 1–4 and 6; no record, no report, empty requirements."""
    _kaggle_training(root / "notebooks")
    _kaggle_service(root / "notebooks")
    _kaggle_drift(root / "notebooks" / "theme6_drift_detection.ipynb")
    (root / "utils.py").write_text(
        '"""The toolkit."""\nimport csv\nimport torch\nimport numpy as np\n\n'
        "def set_seed(seed=42):\n    torch.manual_seed(seed)\n\n"
        "class InferenceLogger:\n    def __init__(self, log_file):\n"
        "        self.log_file = log_file\n        with open(log_file, 'w') as file:\n"
        "            csv.writer(file).writerow(['timestamp', 'confidence'])\n"
    )
    (root / "README.md").write_text("# Deep Learning\nFormat : 3 sessions de 8 heures")
    (root / "Deep_Learning_Course_Introduction.md").write_text("# Objectifs")
    (root / "requirements.txt").write_text("")
    for name in (".DS_Store", "notebooks/.DS_Store"):
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    (root / "baseline_metrics.pt").write_bytes(b"stand-in")
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "best_model.pth").write_bytes(b"stand-in")
    shell_of(root / "exports" / "model_optimized.onnx")
    return root


def _kaggle_training(folder: Path) -> None:
    book(
        folder / "theme1_data_analysis.ipynb",
        "import os\nimport torch\nimport pandas as pd\nimport seaborn as sns\n"
        "import matplotlib.pyplot as plt\nfrom PIL import Image\nimport cv2",
        (KAGGLE, "train 5216"),
        "g = torch.Generator().manual_seed(42)\nindices = torch.randperm(9)",
        'root = "/kaggle/working/figures"',
    )
    crop = "transforms.RandomResizedCrop(224), transforms.ToTensor()"
    book(
        folder / "theme2_baseline_model.ipynb",
        HEADER
        + "from tqdm import tqdm\nfrom sklearn.metrics import classification_report",
        METRICS,
        KAGGLE,
        f"test_transform = transforms.Compose([{crop}])\n"
        "full_train = datasets.ImageFolder(path + '/train')" + SPLIT,
        "class SimpleCNN(nn.Module):\n    def __init__(self):\n"
        "        self.conv1 = nn.Conv2d(3, 16, 3)\n"
        "        self.conv2 = nn.Conv2d(16, 32, 3)",
        "model = SimpleCNN()\nwriter = SummaryWriter('runs/pneumonia_baseline_1')",
        LOOP,
        ("train_model(model, train_loader, val_loader)", "Val Acc: 95.17%"),
        (
            "print(metrics.classification_report(y, p))",
            "accuracy          0.82       624",
        ),
        counts=tuple(range(7, 16)),
    )
    book(
        folder / "theme3_optimization.ipynb",
        HEADER,
        'path = "/kaggle/input/datasets/chest-xray-pneumonia"',
        'saved = torch.load("/kaggle/input/datasets/baseline-model/metrics.pt")',
        "model = models.resnet18(weights='IMAGENET1K_V1')\n"
        "writer = SummaryWriter('runs/resnet_theme3')",
        "full_train = datasets.ImageFolder(path + '/train')" + SPLIT + LOOP,
        ("train_model(model, train_loader, val_loader, 45)", "Val Acc: 95.54%"),
        ("print(f'Test Accuracy: {acc:.2f}')", "Test Accuracy: 0.88"),
    )


def _kaggle_service(folder: Path) -> None:
    book(
        folder / "theme4_onnx_deployment.ipynb",
        HEADER + "import onnx\nimport onnxruntime as ort\nfrom utils import set_seed",
        'torch.onnx.export(model, x, "/kaggle/working/model_optimized.onnx")',
        'session = ort.InferenceSession("/kaggle/working/model_optimized.onnx")',
        "# Thème 5 – Monitoring",
        "from utils import InferenceLogger\nimport time\n"
        "logger = InferenceLogger('inference.csv')",
        "start = time.time()\nout = session.run(None, {'input': x})\n"
        "logger.log(1, 0.9, time.time() - start)",
        "writer = SummaryWriter('runs/monitoring')\n"
        "writer.add_scalar('Production/confidence', 0.95, 0)",
    )


def _kaggle_drift(path: Path) -> None:
    book(
        path,
        "!pip install onnxruntime-gpu -q\nimport torch\nimport numpy as np\n"
        "import onnxruntime as ort\nfrom scipy.stats import ks_2samp",
        METRICS,
        "def compute_mmd(x, y, bandwidth=1.0):\n    return 0.1",
        (
            "confidence_drop = probs_clean.mean() - probs_drift.mean()\n"
            "print(f'Confiance: {confidence_drop:.3f}')",
            "Confiance: -0.396 (de 0.588 à 0.984)",
        ),
        ("ks, p_value = ks_2samp(probs_clean, probs_drift)", "P-value: 1.5e-45"),
        (
            "if p_value < ALPHA:\n    print('DRIFT')\n"
            "    print(f'   3. Baisse de confiance des prédictions')",
            "DRIFT\n   3. Baisse de confiance des prédictions",
        ),
        ("mmd_distance = compute_mmd(probs_clean, probs_drift)", "0.1261"),
        counts=(1, 2, 14, 7, 20, 21, 22),
    )


# --------------------------------------------------------------------------------------
# The second: Windows and a GPU of one's own, notebook/, a report in Word
# --------------------------------------------------------------------------------------

WORK = 'from pathlib import Path\nWORK_DIR = Path(r"C:\\Users\\alice\\PROJET")\n'
SEEDED = "import random\nSEED = 42\nrandom.seed(SEED)\ntorch.manual_seed(SEED)\n"
GREY = "transforms.Compose([transforms.ToTensor(), transforms.Normalize([{}], [{}])])"
FROZEN = """
contourpy==1.3.3
matplotlib==3.10.1
numpy==2.2.6
onnx==1.20.1
onnxruntime-gpu==1.26.0
onnxscript==0.6.0
pandas==2.3.3
pillow==11.3.0
scikit-learn==1.7.2
scipy==1.16.3
seaborn==0.13.2
tensorboard==2.20.0
torch==2.5.0+cu121
torchvision==0.20.0+cu121
tqdm==4.67.1
"""


def windows_layout(root: Path, folder: str = "notebook") -> Path:
    """All eight notebooks and a ninth in a folder of another name; requirements as
    PowerShell writes them.
    """
    _windows_training(root / folder)
    _windows_service(root / folder)
    _windows_retraining(root / folder)
    frozen = FROZEN.strip().replace("\n", "\r\n") + "\r\n"
    (root / "requirements.txt").write_bytes(frozen.encode("utf-16"))
    (root / "README.md").write_text("# Détection de pneumonies\npip install -r …")
    (root / "Rapport_GEN_AI.docx").write_bytes(b"PK\3\4stand-in")
    (root / ".gitignore").write_text("*.pth\n*.onnx.data\n")
    for name in ("champion", "retrained_theme7"):
        graph = f"densenet121_tl_{name}.onnx"
        shell_of(root / "artifacts" / graph, data=f"{graph}.data")
    about = {
        "model_name": "DenseNet121_TL",
        "preprocessing": {"normalize_mean": [0.5], "normalize_std": [0.25]},
        "note": "Champion sélectionné à l'issue du Thème 3 (comparaison Test Set).",
    }
    (root / "artifacts" / "champion_config.json").write_text(json.dumps(about))
    logs = root / "artifacts" / "monitoring" / "logs"
    logs.mkdir(parents=True)
    (logs / "production_logs.csv").write_text("timestamp,confidence,latency_ms\n")
    events = root / "artifacts" / "monitoring" / "tensorboard" / "run_1"
    events.mkdir(parents=True)
    (events / "events.out.tfevents.1770796484.PC.0").write_bytes(b"\x18")
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "model_card.md").write_text("# DenseNet121")
    for number in range(25):
        path = root / "images" / f"theme3_{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG stand-in")
    return root


def _windows_training(folder: Path) -> None:
    book(
        folder / "theme1_data_analysis.ipynb",
        HEADER + WORK + SEEDED + "import seaborn as sns\nimport pandas as pd",
    )
    book(
        folder / "theme2_baseline_model.ipynb",
        HEADER + WORK + SEEDED,
        "class BaselineCNN(nn.Module):\n    pass",
        LOOP + "writer = SummaryWriter('runs/a')\nwriter.add_scalar('loss', 1, 0)",
        ("print(f'Test Accuracy: {a:.2%}')", "Test Accuracy: 79.49%"),
    )
    book(
        folder / "theme3_optimization.ipynb",
        HEADER + WORK + SEEDED,
        "MEAN, STD = 1, 2\nNORM_MEAN = [0.4823]\nNORM_STD = [0.2361]\n"
        "eval_tf = transforms.Compose([transforms.Normalize(NORM_MEAN, NORM_STD)])",
        "model = models.densenet121(weights='DEFAULT')\n"
        "model.features.conv0 = nn.Conv2d(1, 64, kernel_size=7)" + LOOP,
        ("print('Test accuracy', acc)", "Test accuracy 0.9407"),
    )


def _windows_service(folder: Path) -> None:
    book(
        folder / "theme4_onnx_deployment.ipynb",
        HEADER + WORK + SEEDED + "import onnx\nimport onnxruntime as ort\nimport time",
        "torch.onnx.export(model, x, 'densenet121_tl_champion.onnx')",
        (
            "session = ort.InferenceSession('densenet121_tl_champion.onnx')\n"
            "t0 = time.perf_counter()\nsession.run(None, {'input': x})\n"
            "print('speedup', time.perf_counter() - t0)",
            "Speedup : 1.58×",
        ),
    )
    logger = (
        "class InferenceLogger:\n    def __init__(self, log_file):\n"
        '        with open(log_file, "w", newline="") as f:\n'
        '            csv.writer(f).writerow(["confidence", "latency_ms"])\n'
    )
    monitoring = (
        HEADER + WORK + SEEDED + "import csv\nimport onnxruntime as ort\n" + logger,
        "transform = " + GREY.format("0.485", "0.229"),
        "TB = SummaryWriter('tb')\nTB.add_scalar('Live/Latency_ms', 1, 0)",
    )
    book(folder / "theme5_monitoring.ipynb", *monitoring)
    book(
        folder / "backup" / "theme5_monitoring_backup.ipynb",
        *monitoring,
        counts=(9, 3, 1),
    )
    book(
        folder / "theme6_drift_detection.ipynb",
        HEADER + WORK + SEEDED + "from scipy.stats import ks_2samp",
        "transform = " + GREY.format("0.485", "0.229"),
        ("ks = ks_2samp(confidence_clean, confidence_drift)", "p 4.86e-09"),
    )


def _windows_retraining(folder: Path) -> None:
    load = (
        "try:\n    model.load_state_dict(checkpoint)\n"
        "except:\n    print('Structure inconnue, tentative forcée...')"
    )
    book(
        folder / "theme7_retraining.ipynb",
        HEADER + WORK + SEEDED + "from torch.utils.data import random_split",
        'DRIFTED_DIR = WORK_DIR / "chest_xray" / "test_drifted_lvl2_combo5"\n'
        "data_transforms = " + GREY.format("0.485", "0.229") + "\n"
        "full_dataset = datasets.ImageFolder(DRIFTED_DIR, transform=data_transforms)\n"
        "train_dataset, val_dataset = random_split(full_dataset, [499, 125])\n"
        "train_loader = DataLoader(train_dataset, shuffle=True)",
        (load, "Structure inconnue, tentative forcée..."),
        "for inputs, labels in train_loader:\n"
        "    loss = criterion(model(inputs), labels)\n    loss.backward()",
    )
    book(
        folder / "theme7-bis_canary.ipynb",
        HEADER + WORK + "import onnxruntime as ort\nimport pandas as pd",
    )
    book(folder / "theme8_synthesis.ipynb", HEADER + WORK)
