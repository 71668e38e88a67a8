"""Checkpoints that birder 0.8.4 publishes for its RoPE ViTs (`birder/net/rope_vit.py`)."""

import dataclasses

_HUB = "https://huggingface.co/birder-project/{}/resolve/main"
_ARCHIVE = "https://f000.backblazeb2.com/file/birder/models"


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """One file: a trained network of birder."""

    network: str  # birder's name of the architecture
    tag: str  # which training of it
    side: int  # pixels: trained on squares of this side
    megabytes: float  # of 2**20 bytes
    trained_on: str
    sha256: str
    directory: str | None = None  # URL; None: the repository of its name
    detector: str = ""  # birder's name of the detector whose backbone it is

    @property
    def name(self) -> str:
        if self.detector:
            return f"{self.detector}_{self.tag}_{_NAMES_IN_DETECTORS[self.network]}"
        return f"{self.network}_{self.tag}"

    @property
    def file_name(self) -> str:
        return f"{self.name}.pt"

    @property
    def url(self) -> str:
        return f"{self.directory or _HUB.format(self.name)}/{self.file_name}"


_NAMES_IN_DETECTORS = {"rope_i_vit_reg1_s16_pn_npn_avg_c1": "pe_spatial_s16"}

# fmt: off
_ROWS = (
    ("rope_vit_reg4_b14", "capi", 224, 327.0, "CAPI, self-supervised",
     "175378d81734649567bfe82aac9557f9b0bf48dbd562f26e338b1958fa057472"),
    ("rope_vit_reg4_b14", "capi-places365", 224, 328.1, "CAPI, then Places365",
     "4d3ef700eb0d454c9406e9b5c11f70106b46ed4a6ca24c1d89a60097ad78ea9a"),
    ("rope_vit_reg4_b14", "capi-inat21-224px", 224, 357.2, "CAPI, then iNaturalist 2021",
     "fb98a4f29a1c6e552a4e22eaf614b0f2d2adedefe2d510fa7e69309208dc0f9f",
     _HUB.format("rope_vit_reg4_b14_capi-inat21")),
    ("rope_vit_reg4_b14", "capi-inat21", 336, 358.2, "CAPI, then iNaturalist 2021",
     "25befb5a460cc80a5a7961db61e747916461bf6967f3d39d9294ee474bd31304"),
    ("rope_vit_reg4_b14", "capi-imagenet21k", 224, 383.7, "CAPI, then ImageNet-21K",
     "1325f35f0d8dff3270d6ce645f81865e9b8de7bacf17f94a9f5e2ef0cd66f56d"),
    ("rope_vit_reg4_b14", "capi-intermediate-eu-common", 336, 330.1,
     "CAPI, an intermediate training, then eu-common",
     "5f9529dbb354ac755ee7c584fdc9227f469233ca35a09998ddf57afa54199e44"),
    ("rope_vit_reg8_b14_nps_avg", "capi-dino-bio", 224, 327.0, "CAPI-DINO on images of nature",
     "69f3055c05133061bfd12ade1dccf0bccb9947bd583c6f979c3c2c0662b8cf0e"),
    ("rope_vit_reg8_so150m_p14_swiglu_rms_avg", "capi", 224, 652.5, "CAPI, self-supervised",
     "84808bdb7a46c70eb13a67a766c2c3c9a4a9a37a90679e03fd75619aa5517e80"),
    ("rope_vit_reg8_so150m_p14_swiglu_rms_ap", "rotnet-capi", 252, 680.9,
     "CAPI, then which way up an image is",
     "57465120826faa1e61accfb0e51b529c6ae431cc1f6960e4cdd5278d8dbd1edf"),
    ("rope_vit_s14_swiglu_avg", "eva-bio", 224, 109.6, "distilled (EVA) from BioCLIP v2, nature",
     "b9b6618cc5b41fc07ccca7b371144a31d4f486947f2ecbd1e672608c3afc8bd4"),
    ("rope_vit_m14_swiglu_avg", "eva-bio", 224, 194.1, "distilled (EVA) from BioCLIP v2.5, nature",
     "df43c9e4cc8d5e94ba6e65358de07e9315ff040673b7c81be0beab8dfaf31cad"),
    ("rope_deit3_m14", "dino-v2-dist-bio", 252, 146.2, "distilled (DINO v2), images of nature",
     "0600611934dd31081eec28f8da0e8e19728377fdee71196431ead94aa4373db6"),
    ("rope_deit3_reg4_m14", "arabian-peninsula", 252, 147.7, "the arabian-peninsula dataset",
     "596223dde050561e2045352d4c0816ef874b9e8ccc6e5157f9e112cecfa9fb8c"),
    ("rope_deit3_reg4_t16", "il-common", 256, 21.5, "the il-common dataset",
     "3c0e1500d062d75f1b3c5f1aae5015c48b0736521c5289d039da133eefc3519f", _ARCHIVE),
    ("rope_i_vit_s16_pn_aps_c1", "pe-core", 384, 90.0, "CLIP: Meta's Perception Encoder, core",
     "e4429b0bafb9f827698dde73c882c70deb994329ea0dd169f68e76ad256bbb74"),
    ("rope_i_vit_b16_pn_aps_c1", "pe-core", 224, 354.4, "CLIP: Meta's Perception Encoder, core",
     "d1c1ba1e8c841f495ff3c0e5e6963a39c8d1ae07dea30d3b82422017a4062d97"),
    ("rope_i_vit_l14_pn_aps_c1", "pe-core", 336, 1206.0, "CLIP: Meta's Perception Encoder, core",
     "26c2188116cb254d2870c23cc3ab7d60d9ee0606c803b8dbe359e5716498b5c4"),
    ("rope_i_vit_reg1_t16_pn_npn_avg_c1", "pe-spatial", 512, 21.7,
     "CLIP: Meta's Perception Encoder, spatial",
     "f7c7968f31eccbc5593b28217f2ad0a5a28e416838188c5b0c7602d3d58155b3"),
    ("rope_i_vit_reg1_s16_pn_npn_avg_c1", "pe-spatial", 512, 83.9,
     "CLIP: Meta's Perception Encoder, spatial",
     "4e65e500f2a7d2b11fc28aaa0b1ad4921692780507de014ebc5659e757327fde"),
    ("rope_i_vit_reg1_b16_pn_npn_avg_c1", "pe-spatial", 512, 329.8,
     "CLIP: Meta's Perception Encoder, spatial",
     "f1ad844e3e28d52f15d8edf9ebdb1dbc0d333f81edd5c4fddd8602ae55e0f2a7"),
    ("rope_i_vit_l14_nf_swiglu_c1", "eva02-clip", 336, 1161.6, "CLIP: BAAI's EVA-02",
     "4b4bf864c6efa9f3d9e1d22bfe2b614828ab34d0c0389f739a6a0e0ca0bf8af7"),
    ("rope_i_vit_reg1_s16_pn_npn_avg_c1", "objects365", 640, 126.9, "LW-DETR on Objects365",
     "6a412f742e94f0cf8e119ee3f0abf85d7bb231b757306adb958fb3efe98439c3", None, "lw_detr_2stg"),
    ("rope_i_vit_reg1_s16_pn_npn_avg_c1", "objects365-coco", 640, 123.0,
     "LW-DETR on Objects365, then COCO",
     "ce349b9bc79f4375910c8bd5c5cf5e1c1c36c16364321511ea9d6e3231673722", None, "lw_detr_2stg"),
)
# fmt: on

WEIGHTS = {weights.name: weights for weights in (PublishedWeights(*row) for row in _ROWS)}
