"""Checkpoints that birder publishes for its RoPE ViTs, as data: where they are and what they hold.

Source: birder 0.8.4, ``birder/net/rope_vit.py`` (the registered weights), ``birder/common/lib.py``
(how an address is put together) and ``birder/conf/settings.py`` (the address of older files).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """One file: a trained network of birder."""

    network: str  # birder's name of the architecture
    tag: str  # which training of it
    side: int  # pixels: trained on squares of this side
    megabytes: float  # of 2**20 bytes
    sha256: str
    trained_on: str
    directory: str | None = None  # URL that the file lies under; None: the directory of its name

    @property
    def name(self) -> str:
        return f"{self.network}_{self.tag}"

    @property
    def file_name(self) -> str:
        return f"{self.name}.pt"

    @property
    def url(self) -> str:
        return f"{self.directory or _DIRECTORY.format(self.name)}/{self.file_name}"


_DIRECTORY = "https://huggingface.co/birder-project/{}/resolve/main"

_ROWS = (
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi",
        224,
        327.0,
        "175378d81734649567bfe82aac9557f9b0bf48dbd562f26e338b1958fa057472",
        "CAPI, self-supervised",
    ),
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi-places365",
        224,
        328.1,
        "4d3ef700eb0d454c9406e9b5c11f70106b46ed4a6ca24c1d89a60097ad78ea9a",
        "CAPI, then Places365",
    ),
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi-inat21-224px",
        224,
        357.2,
        "fb98a4f29a1c6e552a4e22eaf614b0f2d2adedefe2d510fa7e69309208dc0f9f",
        "CAPI, then iNaturalist 2021",
        directory=_DIRECTORY.format("rope_vit_reg4_b14_capi-inat21"),
    ),
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi-inat21",
        336,
        358.2,
        "25befb5a460cc80a5a7961db61e747916461bf6967f3d39d9294ee474bd31304",
        "CAPI, then iNaturalist 2021",
    ),
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi-imagenet21k",
        224,
        383.7,
        "1325f35f0d8dff3270d6ce645f81865e9b8de7bacf17f94a9f5e2ef0cd66f56d",
        "CAPI, then ImageNet-21K",
    ),
    PublishedWeights(
        "rope_vit_reg4_b14",
        "capi-intermediate-eu-common",
        336,
        330.1,
        "5f9529dbb354ac755ee7c584fdc9227f469233ca35a09998ddf57afa54199e44",
        "CAPI, an intermediate training, then eu-common",
    ),
    PublishedWeights(
        "rope_vit_reg8_b14_nps_avg",
        "capi-dino-bio",
        224,
        327.0,
        "69f3055c05133061bfd12ade1dccf0bccb9947bd583c6f979c3c2c0662b8cf0e",
        "CAPI-DINO on images of nature",
    ),
    PublishedWeights(
        "rope_vit_reg8_so150m_p14_swiglu_rms_avg",
        "capi",
        224,
        652.5,
        "84808bdb7a46c70eb13a67a766c2c3c9a4a9a37a90679e03fd75619aa5517e80",
        "CAPI, self-supervised",
    ),
    PublishedWeights(
        "rope_vit_reg8_so150m_p14_swiglu_rms_ap",
        "rotnet-capi",
        252,
        680.9,
        "57465120826faa1e61accfb0e51b529c6ae431cc1f6960e4cdd5278d8dbd1edf",
        "CAPI, then which way up an image is",
    ),
    PublishedWeights(
        "rope_vit_s14_swiglu_avg",
        "eva-bio",
        224,
        109.6,
        "b9b6618cc5b41fc07ccca7b371144a31d4f486947f2ecbd1e672608c3afc8bd4",
        "distilled (EVA) from BioCLIP v2, nature",
    ),
    PublishedWeights(
        "rope_vit_m14_swiglu_avg",
        "eva-bio",
        224,
        194.1,
        "df43c9e4cc8d5e94ba6e65358de07e9315ff040673b7c81be0beab8dfaf31cad",
        "distilled (EVA) from BioCLIP v2.5, nature",
    ),
    PublishedWeights(
        "rope_deit3_m14",
        "dino-v2-dist-bio",
        252,
        146.2,
        "0600611934dd31081eec28f8da0e8e19728377fdee71196431ead94aa4373db6",
        "distilled (DINO v2), images of nature",
    ),
    PublishedWeights(
        "rope_deit3_reg4_m14",
        "arabian-peninsula",
        252,
        147.7,
        "596223dde050561e2045352d4c0816ef874b9e8ccc6e5157f9e112cecfa9fb8c",
        "the arabian-peninsula dataset",
    ),
    PublishedWeights(
        "rope_deit3_reg4_t16",
        "il-common",
        256,
        21.5,
        "3c0e1500d062d75f1b3c5f1aae5015c48b0736521c5289d039da133eefc3519f",
        "the il-common dataset",
        directory="https://f000.backblazeb2.com/file/birder/models",
    ),
    PublishedWeights(
        "rope_i_vit_s16_pn_aps_c1",
        "pe-core",
        384,
        90.0,
        "e4429b0bafb9f827698dde73c882c70deb994329ea0dd169f68e76ad256bbb74",
        "CLIP: Meta's Perception Encoder, core",
    ),
    PublishedWeights(
        "rope_i_vit_b16_pn_aps_c1",
        "pe-core",
        224,
        354.4,
        "d1c1ba1e8c841f495ff3c0e5e6963a39c8d1ae07dea30d3b82422017a4062d97",
        "CLIP: Meta's Perception Encoder, core",
    ),
    PublishedWeights(
        "rope_i_vit_l14_pn_aps_c1",
        "pe-core",
        336,
        1206.0,
        "26c2188116cb254d2870c23cc3ab7d60d9ee0606c803b8dbe359e5716498b5c4",
        "CLIP: Meta's Perception Encoder, core",
    ),
    PublishedWeights(
        "rope_i_vit_reg1_t16_pn_npn_avg_c1",
        "pe-spatial",
        512,
        21.7,
        "f7c7968f31eccbc5593b28217f2ad0a5a28e416838188c5b0c7602d3d58155b3",
        "CLIP: Meta's Perception Encoder, spatial",
    ),
    PublishedWeights(
        "rope_i_vit_reg1_s16_pn_npn_avg_c1",
        "pe-spatial",
        512,
        83.9,
        "4e65e500f2a7d2b11fc28aaa0b1ad4921692780507de014ebc5659e757327fde",
        "CLIP: Meta's Perception Encoder, spatial",
    ),
    PublishedWeights(
        "rope_i_vit_reg1_b16_pn_npn_avg_c1",
        "pe-spatial",
        512,
        329.8,
        "f1ad844e3e28d52f15d8edf9ebdb1dbc0d333f81edd5c4fddd8602ae55e0f2a7",
        "CLIP: Meta's Perception Encoder, spatial",
    ),
    PublishedWeights(
        "rope_i_vit_l14_nf_swiglu_c1",
        "eva02-clip",
        336,
        1161.6,
        "4b4bf864c6efa9f3d9e1d22bfe2b614828ab34d0c0389f739a6a0e0ca0bf8af7",
        "CLIP: BAAI's EVA-02",
    ),
)

WEIGHTS = {weights.name: weights for weights in _ROWS}
