"""Published numbers, as they were printed: percent, and root mean squared errors in metres.

Sources: the papers and model cards of DINO (2021), DINOv2 (2023), registers (2023) and DINOv3 (2025); of memories the
reproduction of Hummingbird and DIP (2025), and AnomalyDINO (2024); of mask queries EoMT (2025).
"""

from __future__ import annotations

V1 = ("dino_resnet50", "dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8")
IBOT = ("ibot_vits16", "ibot_vitb16", "ibot_vitl16")
V2 = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
V2R = tuple(f"{name}_reg" for name in V2)
V3 = ("dinov3_vits16", "dinov3_vits16plus", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vith16plus", "dinov3_vit7b16")
CNN = tuple(f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large"))
OTHERS = ("dino_vitb8", "ibot_vitl16")  # beside which DINOv2 was measured
BEST = ("dinov2_vitg14_reg", "dinov3_vith16plus", "dinov3_vit7b16")

Table = dict[str, str]  # backbone -> value


def named(names: tuple[str, ...], values: str) -> Table:
    """Return backbones with their values, which are separated by spaces."""
    return dict(zip(names, values.split(), strict=True))


KNN = {
    "DINO": named(V1, "67.5 74.5 78.3 76.1 77.4"),
    "iBOT": named(IBOT, "75.2 77.1 78.0"),
    "DINOv2": named((*V2, *V2R), "79.0 82.1 83.5 83.5 79.1 82.0 83.8 83.7"),
}
LINEAR = {
    "DINO": named(V1, "75.3 77.0 79.7 78.2 80.1"),
    "iBOT": named(IBOT, "77.9 79.5 81.0"),
    "DINOv2": named((*V2, *V2R), "81.1 84.5 86.3 86.5 80.9 84.6 86.7 87.1"),
}
SEGMENTATION = {
    "ade20k": named((*V2, *OTHERS), "44.3 47.3 47.7 49.0 31.8 44.6"),
    "cityscapes": named((*V2, *OTHERS), "66.6 69.4 70.3 71.3 56.9 64.8"),
    "voc2012_aug": named((*V2, *OTHERS), "81.1 82.5 82.1 83.0 66.4 82.3"),
}
SEGMENTATION_MS = {
    "ade20k": named((*V2, *OTHERS), "47.2 51.3 53.1 53.0 35.2 47.5"),
    "cityscapes": named((*V2, *OTHERS), "77.1 80.0 80.9 81.0 66.2 74.5"),
    "voc2012_aug": named((*V2, *OTHERS), "82.6 84.9 86.0 86.2 75.6 84.3"),
}
SEGMENTATION_V3 = {
    "ade20k": named((*V3, *CNN), "47.0 48.8 51.8 54.9 54.8 55.9 42.7 44.8 46.3 47.8")
    | named(V2R, "45.5 48.4 48.8 49.5"),
    "cityscapes": named(BEST, "75.6 79.5 81.1"),
    "voc2012_aug": named(BEST, "83.1 85.8 86.6"),
}
EOMT = {  # kind, data
    ("segmentation", "ade20k"): {"dinov2_vitl14_reg": "58.4"},
    ("panoptic", "coco_panoptic"): named(V2R[:3], "46.7 51.6 56.0"),
    ("instance", "coco"): {"dinov2_vitl14_reg": "45.2"},
}
DEPTH = {
    ("depth_linear1", "nyuv2"): named((*V2, *OTHERS), "0.449 0.399 0.384 0.344 0.555 0.417"),
    ("depth_linear1", "kitti"): named((*V2, *OTHERS), "3.10 2.90 2.78 2.62 3.81 3.31"),
    ("depth_linear4", "nyuv2"): named((*V2, *OTHERS), "0.417 0.362 0.333 0.298 0.539 0.387"),
    ("depth_linear4", "kitti"): named((*V2, *OTHERS), "2.86 2.59 2.50 2.35 3.56 3.07"),
    ("depth_dpt", "nyuv2"): named((*V2, *OTHERS), "0.356 0.317 0.293 0.279 0.492 0.358"),
    ("depth_dpt", "kitti"): named((*V2, *OTHERS), "2.34 2.23 2.14 2.11 2.74 2.55"),
}
DEPTH_V3 = {
    "nyuv2": named((*V3, *CNN), "0.403 0.399 0.373 0.352 0.352 0.309 0.448 0.432 0.420 0.403")
    | named(V2R, "0.446 0.416 0.394 0.372"),
    "kitti": named(BEST, "2.624 2.635 2.346"),
}
DAVIS_V1 = named(V1[1:], "61.8 69.9 62.3 71.4")
DAVIS_V3 = {  # name -> (patches on the shorter side, values)
    "tracking_small": (30, named(("dinov2_vitg14_reg", "dinov3_vit7b16"), "63.9 71.1")),
    "tracking": (60, named((*V3, *V2R), "72.7 75.5 77.2 79.9 79.3 79.7 73.6 72.9 73.4 73.6")),
    "tracking_large": (90, named(("dinov2_vitg14_reg", "dinov3_vit7b16"), "76.6 83.3")),
}
JACCARD = named(V1[1:3], "45.9 44.7")
JACCARD_RANDOM = named(V1[1:3], "22.0 21.8")
RETRIEVAL = {  # source, level, data
    ("DINO", "medium", "roxford5k"): {"dino_vits16": "41.8"},
    ("DINO", "hard", "roxford5k"): {"dino_vits16": "13.7"},
    ("DINO", "medium", "rparis6k"): {"dino_vits16": "63.1"},
    ("DINO", "hard", "rparis6k"): {"dino_vits16": "34.4"},
    ("DINOv2", "hard", "roxford5k"): named((*V2, *V2R), "43.2 49.5 54.0 52.3 39.5 51.0 55.7 58.2"),
    ("DINOv3", "hard", "roxford5k"): {"dinov3_vit7b16": "60.7"},
    ("DINOv3", "hard", "rparis6k"): {"dinov2_vitg14_reg": "84.6", "dinov3_vit7b16": "87.1"},
    ("DINOv3, model card", "hard", "roxford5k"): named(V3, "49.5 50.0 58.5 63.1 64.5 72.8"),
}
COPIES = {"dino_vitb16": "81.7", "dino_vitb8": "85.5"}
HUMMINGBIRD = ("dino_vits16", "dino_vitb16", *V2)
IN_CONTEXT = {  # patches in memory
    102_400: named(HUMMINGBIRD, "37.2 44.9 70.2 69.1 64.6 62.3"),
    1_024_000: named(HUMMINGBIRD, "43.1 50.8 74.9 74.6 71.7 69.9"),
    10_240_000: named(HUMMINGBIRD, "46.6 55.7 77.0 76.9 74.8 73.6"),
}
IN_CONTEXT_WARM = {"voc2012_aug": named(V2R[:2], "79.4 79.0"), "ade20k": named(V2R[:2], "39.3 40.8")}
ANOMALY = {"dinov2_vits14": "96.6"}

KNN_22K = named(IBOT[1:], "71.1 72.9")  # iBOT on ImageNet-22k
LINEAR_22K = named(IBOT[1:], "79.0 82.3")

PRETRAINED = (  # recipe, nodes of eight GPUs, images, k-NN, linear, options of its linear classification
    ("dino_vits16", 1, "ImageNet-1k", "69.3", "74.0", "--recipe dino"),
    ("dino_vits16_300", 2, "ImageNet-1k", "73.3", "76.0", "--recipe dino"),
    ("dinov2_vitl16_short", 4, "ImageNet-1k", "81.6", "82.9", "--recipe dinov2 --batch-size 1024"),
    ("dinov2_vitl14", 12, "ImageNet-22k", "82.0", "84.5", "--recipe dinov2 --batch-size 1024"),
    ("dinov3_vitl_im1k", 4, "ImageNet-1k", "82.0", "83.5", "--recipe dinov2 --batch-size 1024"),
)
HEADS = (  # published heads, values, options of `dense convert`, of `dense evaluate`
    (
        "DPT-Hybrid of isl-org, NYUv2",
        "delta1 0.904, AbsRel 0.109 (0.110 in the paper), RMSE 0.357, SILog 9.521",
        "--family dpt_depth --kind nyu",
        "depth MODEL --data NYU --layout nyuv2 --crop nyu_eigen --cap 0.001 10",
    ),
    (
        "DPT-Hybrid of isl-org, KITTI",
        "delta1 0.959, AbsRel 0.062, RMSE 2.575, SILog 8.282",
        "--family dpt_depth --kind kitti",
        "depth MODEL --data KITTI --layout kitti_eigen --kb-crop --crop garg --cap 0.001 80",
    ),
    (
        "DINOv2 `*_nyu_{linear,linear4,dpt}_head`",
        "those of the rows depth_*/nyuv2 (the hub gives linear heads 80 m)",
        "--backbone NAME --weights FILE --max-depth 10",
        "depth MODEL --data NYU --layout nyuv2 --protocol nyuv2",
    ),
    (
        "DINOv2 `*_kitti_{linear,linear4,dpt}_head`",
        "those of the rows depth_*/kitti",
        "--backbone NAME --weights FILE --max-depth 80",
        "depth MODEL --data KITTI --layout kitti_eigen --protocol kitti_eigen --kb-crop",
    ),
    (
        "DINOv2 `*_ade20k_linear_head`",
        "those of the rows segmentation/ade20k",
        "--backbone NAME --weights FILE",
        "segmentation MODEL --data ADE20K --layout ade20k --protocol slide_512 --window 518 --resize 518",
    ),
    (
        "DINOv2 `*_voc2012_linear_head`",
        "those of the rows segmentation/voc2012_aug",
        "--backbone NAME --weights FILE",
        "segmentation MODEL --data VOC --layout voc2012_aug --protocol slide_512 --window 518 --resize 518",
    ),
    (
        "DINOv2 `*_ade20k_ms_head`",
        "those of the rows segmentation_ms/ade20k",
        "--backbone NAME --weights FILE",
        "segmentation MODEL --data ADE20K --layout ade20k --protocol dinov2_ms",
    ),
    (
        "DINOv2 `*_voc2012_ms_head`",
        "those of the rows segmentation_ms/voc2012_aug",
        "--backbone NAME --weights FILE",
        "segmentation MODEL --data VOC --layout voc2012_aug --protocol dinov2_ms",
    ),
)

NOT_HERE = (  # number, values, why no row measures it
    (
        "ImageNet linear, DINOv3",
        "7B 88.4 (DINOv2-g by the same protocol 87.3)",
        "images of 512 pixels, 10 epochs, 15 rates with two weight decays: `dense evaluate linear` has no such recipe",
    ),
    (
        "ImageNet-ReaL, DINOv3",
        "S 87.0, B 89.3, L 90.2, 7B 90.4",
        "the trained linear classifier on other labels; `dense evaluate` measures on the classes of its training alone",
    ),
    (
        "ImageNet-V2, DINOv2",
        "S 70.8, B 74.9, L 77.6, g 78.4; registers 71.0, 75.6, 78.5, 78.8",
        "the trained linear classifier on other images, as above",
    ),
    (
        "ImageNet-R and ObjectNet, DINOv3",
        "S 60.4, 50.9; S+ 68.8, 54.6; B 76.7, 64.1; L 88.1, 74.8; H+ 90.0, 78.6; 7B 91.1, 91.1",
        "as above, on a part of the classes; the card prints the same number twice for 7B",
    ),
    (
        "iNaturalist 2018, DINOv2",
        "S 69.5, B 76.3, L 79.8, g 81.6; registers 67.6, 73.8, 80.9, 81.5",
        "the card does not say how its classifier was trained",
    ),
    (
        "ImageNet classifiers, DINOv2 `*_linear_head.pth`, `*_linear4_head.pth`, DINO `*_linearweights.pth`",
        "those of the rows linear/*",
        "`dense convert` refuses them: it reads no classifier of whole images; the rows train their own",
    ),
    (
        "ImageNet fine-tuning, iBOT",
        "S/16 82.3, B/16 84.0, L/16 84.8; ImageNet-22k B/16 84.4, L/16 86.6",
        "`dense evaluate finetune` trains so, but iBOT's augmentations, rates and epochs are not known to us",
    ),
    (
        "ImageNet k-NN, linear and fine-tuning, iBOT with random masks",
        "B/16 77.3, 79.8, 84.1; L/16 77.7, 81.3, 85.0",
        "other weights by the names of the rows knn/imagenet and linear/imagenet, whose commands measure them",
    ),
    (
        "Jaccard of attention, VOC 2012, DINO",
        "supervised: S/16 27.3, S/8 23.7",
        "these networks were not published; `benchmarks/papers/dino.py masks` measures a supervised one",
    ),
    ("DAVIS-2017, DINO", "S/8 supervised 66.0", "this network was not published"),
    (
        "DAVIS-2017, J and F of DINO",
        "S/16 60.2, 63.4; B/16 60.7, 63.9; S/8 66.6, 73.1; B/8 67.9, 74.9",
        "the rows tracking/davis compare their mean, and write both into `result/results.json`",
    ),
    (
        "YouTube-VOS and MOSE, DINOv3",
        "7B at 480, 960, 1440 pixels: 74.1, 80.2, 80.7; 46.0, 53.9, 55.6",
        "`dense evaluate video` reads DAVIS-2017 alone",
    ),
    (
        "ImageNet k-NN and linear, DINO's XCiT",
        "S12/16 76.0, 77.8; S12/8 77.1, 79.2; M24/16 76.4, 78.8; M24/8 77.9, 80.3",
        "there is no adapter for XCiT",
    ),
    (
        "ImageNet k-NN and linear, iBOT's Swin",
        "T/7 75.3, 78.6; T/14 76.2, 79.3",
        "there is no adapter for iBOT's Swin",
    ),
    (
        "Oxford and Paris, DINO on Google Landmarks v2",
        "S/16 medium 51.5, 75.3; hard 24.3, 51.6",
        "the hub of DINO does not list this backbone",
    ),
    (
        "SUN RGB-D, models of NYUv2, DINOv2",
        "RMSE of linear one layer, four layers, DPT: S 0.477, 0.431, 0.409; B 0.448, 0.400, 0.377; "
        "L 0.429, 0.396, 0.360; g 0.402, 0.362, 0.338",
        "no layout reads SUN RGB-D, and its protocol is not known to us",
    ),
    (
        "CorLoc on VOC07, VOC12, COCO20k, TokenCut",
        "DINO S/16 61.1, 66.0, 48.7; B/16 60.1, 64.4, 50.5; DINOv2-g 55.6, 60.4, 45.4; DINOv3-7B 66.1, 69.5, 55.1 "
        "(DINOv3); DINO S/16 68.8, 72.1, 58.8 (TokenCut)",
        "objects here are masks, not the published boxes",
    ),
    ("CorLoc on VOC07, VOC12, COCO20k, LOST", "DINO S/16 61.9, 64.0, 50.7", "as above"),
    (
        "CorLoc on VOC07, VOC12, COCO20k, LOST and a detector trained on its boxes",
        "65.7, 70.4, 57.5 (recalled)",
        "no such detector is here",
    ),
    ("COCO, CutLER", "AP of boxes 12.3, of masks 9.7 (recalled)", "no detector that is trained on MaskCut is here"),
    (
        "STEGO, DINO B/8",
        "mIoU and accuracy: COCO-Stuff-27 28.2, 56.9, by a linear probe 41.0, 76.1; Cityscapes 21.0, 73.2 (recalled)",
        "no layout reads the 27 classes, and shifts were tuned for each data set",
    ),
    (
        "NAVI and SPair, DINOv3",
        "S 56.3, 50.4; S+ 57.1, 55.2; B 58.8, 57.2; L 62.3, 61.3; H+ 63.3, 56.3; 7B 64.4, 58.7",
        "no verb measures correspondence",
    ),
    (
        "SPair, INSID3",
        "PCK at 0.05, 0.10, 0.15, 0.20 of ViT-B at 768 pixels: raw 30.1, 46.8, 55.6, 61.2; "
        "without the positional basis 33.7, 52.6, 62.5, 68.7",
        "as above",
    ),
    (
        "One-shot segmentation, INSID3",
        "mIoU, ViT-L: LVIS-92i 47.2, PASCAL-Part 50.5, Chest X-ray 78.8; not verified: ISIC 63.9, SUIM 61.7",
        "the method is `--method insid3`; the episodes of these data sets have no layout here",
    ),
    (
        "In-context segmentation, NeCo and DIP",
        "VOC 2012, ADE20K: NeCo S 81.0, 38.9, B 82.4, 41.2; DIP S 81.0, 39.7, B 82.1, 42.6",
        "the protocol is that of the rows in_context_warm; whether these papers' weights open here was not tried",
    ),
    (
        "k-NN, linear and overclustering (500), NeCo",
        "DINOv2 S 78.6, 81.4, 57.7; B 82.8, 84.5, 71.1; registers S 80.7, 81.5, 68.9; DINO S/16 61.3, 65.8, 47.9",
        "weights as above; the protocol is not known to us",
    ),
    (
        "In-context segmentation, Franca",
        "VOC 2012: B 75.7, L 73.5, g 71.7 (ImageNet-21k) and 76.7 (LAION)",
        "there is no backbone of this name, and the size of the memory is not known to us",
    ),
    (
        "In-context segmentation, CAPI",
        "ADE20K, ViT-L: 35.2 (Places205), 32.1 (LVD-142M)",
        "there is no backbone of this name; its protocol copies the labels of pixels and chooses k and the distance",
    ),
    (
        "Upsamplers, JAFAR's table, DINOv2-S",
        "mIoU of COCO, VOC 2012, ADE20K, Cityscapes: bilinear 59.03, 80.70, 39.23, 59.37; FeatUp 60.10, 81.08, "
        "38.82, 56.06; JAFAR 60.78, 84.44, 40.49, 61.47; delta1 of depth 59.92, 61.69, 62.18",
        "no learned upsampler of features is here",
    ),
    (
        "One model of all categories, Dinomaly",
        "AUROC of images: MVTec AD 99.6, VisA 98.7, Real-IAD 89.3; of pixels: MVTec AD 98.4; DINOv3-L 99.70, 98.78",
        "it trains a decoder; `dense anomaly` trains nothing",
    ),
    (
        "EoMT on DINOv2-g",
        "COCO PQ 57.0",
        "in how many blocks its queries run is not known to us",
    ),
    ("EoMT on Cityscapes", "DINOv2-L 84.2", "size and schedule of this training are not known to us"),
    ("EoMT at 1280 pixels", "COCO mask AP L 48.8; PQ DINOv3-L 58.9", "the recipes are of 640 pixels"),
    (
        "EoMT on DINOv3",
        "ADE20K L 59.5; COCO PQ S 47.2, B 53.1, L 56.8",
        "the recipes are those of DINOv2, with other learning rates, layer decay, annealing and warm-ups",
    ),
    (
        "Mask2Former on frozen backbones",
        "DINOv2-g ADE20K 60.2; DINOv3-7B, single and multi-scale: ADE20K 62.6, 63.0; COCO-Stuff 53.8, 54.0; "
        "Cityscapes 86.1, 86.7; VOC 2012 90.1, 90.4",
        "a head that this project does not have",
    ),
    ("Plain-DETR on DINOv3-7B", "COCO boxes 65.6, multi-scale 66.1", "as above"),
    ("UperNet on iBOT", "ADE20K B 50.0", "as above, with the backbone trained too"),
    (
        "DPT on ViT-B of mmsegmentation, ADE20K",
        "46.97, with several scales and flips 48.34",
        "the backbone is trained too, for 160,000 steps of which no recipe is here",
    ),
    ("DPT-Hybrid, ADE20K", "mIoU 49.02 (recalled)", "the size and the windows of this measurement are not known to us"),
    (
        "ADE20K, MAE-H and OpenCLIP-G beside DINOv2",
        "linear and with four layers and five scales: MAE-H 33.3, 30.7; OpenCLIP-G 39.3, 46.0",
        "MAE-H and OpenCLIP-G are other backbones than those of this project",
    ),
    (
        "lightly-train",
        "ImageNet k-NN of DINOv2 ViT-L/16 81.9; EoMT on DINOv3: ADE20K S 46.6, B 54.4, L 59.1, after its distillation "
        "with pseudo masks S 53.3, B 57.3; COCO-Stuff S 45.0, B 50.1, L 52.5; Cityscapes S 78.6, B 81.0, L 84.4",
        "whether these weights open here was not tried",
    ),
    (
        "ViT-S/16 of lightly, ImageNet",
        "linear, fine-tuning and k-NN after 100 epochs: DINO 73.3, 79.8, 67.5; iBOT 72.2, 78.3, 65.4",
        "as above, with batches of 128 and options that are not known to us",
    ),
    (
        "ResNet-18 of solo-learn, DINO",
        "CIFAR-10 89.52, CIFAR-100 66.76, ImageNet-100 74.92",
        "without multi-crop, by recipes that are not here",
    ),
    (
        "Depth Anything V2",
        "zero-shot NYU delta1 L 0.979; trained on the data, L: delta1, AbsRel, RMSE of NYU 0.984, 0.056, 0.206; of "
        "KITTI 0.983, 0.045, 1.861 (all recalled)",
        "files open here, but how relative depth was aligned, and how models of these data were trained, is not known "
        "to us",
    ),
    (
        "Depth Anything 3, metric, NYU",
        "delta1, AbsRel, RMSE: L 0.950, 0.078, 0.339; small 0.912, 0.099, 0.377",
        "a head that this project does not have",
    ),
    (
        "MiDaS v3.0, DPT-Large, relative depth",
        "DIW WHDR 0.1082; ETH3D and Sintel AbsRel 0.0888, 0.2697; percent beyond 1.25: TUM 9.97, KITTI 8.46, NYU 8.32",
        "files open here; no layout reads DIW, ETH3D, Sintel or TUM, and which images of KITTI and NYU were measured "
        "is not known to us",
    ),
    (
        "Restormer, PSNR in dB",
        "GoPro 32.92, SIDD 40.02, Rain100L 38.99; colour noise of 15, 25, 50 on CBSD68 34.40, 31.79, 28.60 (recalled)",
        "files open here, and `dense evaluate restoration` measures pairs; which images and channels were measured is "
        "not known to us",
    ),
    (
        "Relative depth, DPT on DINOv3-7B",
        "ARel and delta1: NYU 4.3, 98.0; KITTI 7.3, 96.7; ETH3D 5.4, 97.5; ScanNet 4.4, 98.1; DIODE 25.6, 82.2",
        "no layout reads the synthetic training images, ETH3D, ScanNet or DIODE; how the published head is aligned and "
        "cropped on NYUv2 and KITTI is not known to us",
    ),
)
