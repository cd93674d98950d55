"""Models without a rotary embedding: which they are, and how their configs say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RopeConfigError
from ..validation import raise_or_warn

__all__ = ["NO_ROPE", "refuse_without_rope"]

# Model types of transformers 5.23 whose attention does not rotate, and of some models outside it (btlm, jais).
_NAMES = (
    "aimv2_text_model aimv2_vision_model albert align_text_model align_vision_model altclip_text_model "
    "altclip_vision_model audio-spectrogram-transformer audioflamingo3_encoder autoformer bart beit bert "
    "bert-generation big_bird bigbird_pegasus biogpt bit blenderbot blenderbot-small blip_2_qformer "
    "blip_2_vision_model blip_text_model blip_vision_model bloom bridgetower_text_model bridgetower_vision_model bros "
    "btlm camembert canary_decoder canine chameleon_vqgan chinese_clip_text_model chinese_clip_vision_model chmv2 "
    "clap_audio_model clap_text_model clip_text_model clip_vision_model clipseg_text_model clipseg_vision_model "
    "clvp_decoder coarse_acoustics cohere_asr conditional_detr convbert convnext convnextv2 cosmos3_edge_vision "
    "cpmant ctrl cvt d_fine dab-detr dac data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 "
    "decision_transformer deepseek_ocr2_sam_vision_model deformable_detr deimv2 deit depth_anything detr dinat dinov2 "
    "dinov2_with_registers dinov3_convnext distilbert donut-swin dpr dpt edgetam edgetam_mask_decoder "
    "edgetam_prompt_encoder edgetam_video_mask_decoder edgetam_video_prompt_encoder edgetam_vision_model efficientnet "
    "electra emu3_vqgan encodec eomt ernie falcon_mamba fastspeech2_conformer fastspeech2_conformer_hifigan "
    "fine_acoustics flaubert flava_image_codebook flava_image_model flava_multimodal_model flava_text_model "
    "florence_vision fnet focalnet fsmt fun_asr_nano_encoder funnel gemma3n_audio gemma3n_vision gemma4_audio "
    "gemma4_unified_audio gemma4_unified_vision git git_vision_model glm5_next_text glm_image_vqmodel glpn "
    "got_ocr2_vision gpt2 gpt_bigcode gpt_neo granite_docling_vision granite_speech5_encoder granite_speech_encoder "
    "granite_speech_plus_encoder groupvit_text_model groupvit_vision_model hgnet_v2 hiera hubert hunyuan_vl_vision "
    "ibert idefics2_perceiver idefics2_vision idefics3_vision idefics_perciever idefics_vision ijepa imagegpt "
    "informer inkling2_text inkling_audio inkling_text inkling_vision instructblip_qformer instructblip_vision_model "
    "instructblipvideo_qformer instructblipvideo_vision_model internvl_vision jais jamba janus_vision_model "
    "janus_vqgan kimi_linear kosmos_2_5_text_model kosmos_2_5_vision_model kosmos_2_text_model kosmos_2_vision_model "
    "layoutlm layoutlmv2 layoutlmv3 layoutxlm led levit lilt longformer longt5 luke lw_detr lw_detr_vit lxmert "
    "m2m_100 mamba mamba2 marian markuplm mask2former maskformer maskformer-swin mbart megatron-bert "
    "metaclip_2_text_model metaclip_2_vision_model mgp-str minicpm_ocr_vision minicpmv4_6_vision minicpmv4_7_vision "
    "mllama_vision_model mobilebert mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 molmo2_adapter molmo2_vision "
    "moonshine_streaming_encoder moshi_depth moss_transcribe_diarize_audio mpnet mra mt5 muse_spark_audio "
    "musicgen_decoder musicgen_melody_decoder mvp nemotron_asr_streaming_encoder nemotron_h nllb-moe nystromformer "
    "oneformer openai-gpt opt ovis2_vision owlv2_text_model owlv2_vision_model owlvit_text_model owlvit_vision_model "
    "parakeet_encoder patchtsmixer patchtst pegasus pegasus_x perceiver phi4_multimodal_audio phi4_multimodal_vision "
    "pix2struct_text_model pix2struct_vision_model pixio plbart poolformer pop2piano pp_chart2table_vision "
    "pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_formulanet_text pp_formulanet_vision pp_lcnet pp_lcnet_v3 "
    "pp_lcnet_v4 pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_det pp_ocrv5_server_rec pp_ocrv6_medium_det "
    "pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec prompt_depth_anything prophetnet pvt pvt_v2 "
    "qianfan_ocr_vision qwen2_5_omni_audio_encoder qwen2_5_omni_bigvgan qwen2_audio_encoder qwen3_asr_encoder "
    "qwen3_omni_moe_audio_encoder radio reformer regnet rembert resnet rf_detr rf_detr_dinov2 roberta "
    "roberta-prelayernorm roc_bert rt_detr rt_detr_resnet rt_detr_v2 rwkv sam sam2 sam2_hiera_det_model "
    "sam2_mask_decoder sam2_prompt_encoder sam2_video_mask_decoder sam2_video_prompt_encoder sam2_vision_model "
    "sam3_detr_decoder sam3_detr_encoder sam3_geometry_encoder sam3_lite_text_detr_decoder "
    "sam3_lite_text_detr_encoder sam3_lite_text_geometry_encoder sam3_lite_text_mask_decoder "
    "sam3_lite_text_text_model sam3_mask_decoder sam3_tracker sam3_tracker_mask_decoder sam3_tracker_prompt_encoder "
    "sam3_tracker_video_mask_decoder sam3_tracker_video_prompt_encoder sam_hq sam_hq_mask_decoder "
    "sam_hq_prompt_encoder sam_hq_vision_model sam_mask_decoder sam_prompt_encoder sam_vision_model sapiens2_head "
    "segformer seggpt semantic sew sew-d siglip2_text_model siglip2_vision_model siglip_text_model "
    "siglip_vision_model slanet slanext slanext_vision smolvlm_vision speech_to_text speecht5 speecht5_hifigan "
    "splinter squeezebert superglue superpoint swiftformer swin swin2sr swinv2 switch_transformers t5 "
    "table-transformer tapas textnet time_series_transformer timesfm timesformer timm_backbone timm_wrapper "
    "tipsv2_dpt tipsv2_text_model tipsv2_vision_model trocr tvp udop umt5 unispeech unispeech-sat univnet "
    "unlimited_ocr_sam_vision_model unlimited_ocr_vision_encoder upernet uvdoc uvdoc_backbone "
    "vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder vibevoice_acoustic_tokenizer_encoder "
    "vibevoice_diffusion videomae videomt videoprism_text_model videoprism_vision_model vilt visual_bert vit vit_mae "
    "vit_msn vitdet vitmatte vitpose vitpose_backbone vits vivit voxtral_encoder wav2vec2 wavlm whisper "
    "xclip_text_model xclip_vision_model xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos yoso zamba "
    "zoedepth "
)
NO_ROPE = frozenset(_NAMES.split())

_SWITCHES = (
    "rope",
    "use_rotary_pos_emb",
    "use_rope",
    "use_rotary",
    "use_rotary_embedding",
    "use_rotary_position_embeddings",
    "rotary",
    "use_mem_rope",
)
_ALIBI = ("alibi", "use_alibi")
_POSITIONS = (
    "position_embedding_type",
    "position_embeddings_type",
    "positional_embedding_type",
    "pos_emb_type",
)
_BASES = ("rope_theta", "rope_parameters", "rope_scaling", "global_rope_theta", "rotary_emb_base")
_ROTARY_WORDS = ("rope", "rotary", "ro_pe")
# Models that rotate only if their config says so; what the config class says by default.
_OPTIONAL = {
    "esm": ("position_embedding_type", "absolute"),
    "granitemoehybrid": ("position_embedding_type", "none"),
    "seamless_m4t": ("position_embeddings_type", "relative"),
    "seamless_m4t_v2": ("position_embeddings_type", "relative_key"),
    "wav2vec2-bert": ("position_embeddings_type", "relative_key"),
    "wav2vec2-conformer": ("position_embeddings_type", "relative"),
}


def refuse_without_rope(source: Mapping[str, Any], strict: bool) -> None:
    """Check that the model has a rotary embedding.

    Raises:
        RopeConfigError: a model type that never rotates; with ``strict`` also a key that says so.
    """
    model = str(source.get("model_type") or "")
    if model in NO_ROPE:
        raise RopeConfigError("model_type", f"got {model!r}, a model without a rotary embedding: nothing to rotate")
    for key in _ALIBI:
        if source.get(key):
            _report(key, source[key], "a model with ALiBi biases", strict)
    for key in _SWITCHES:
        if source.get(key) is False:
            _report(key, False, "a model without a rotary embedding", strict)
    if model == "zamba2" and not source.get("use_mem_rope"):
        _report("use_mem_rope", source.get("use_mem_rope"), "without which zamba2 does not rotate", strict)
    if model == "baichuan" and source.get("hidden_size") == 5120:
        _report("hidden_size", 5120, "Baichuan's 13B models, which have ALiBi biases", strict)
    if model == "mpt" and "rope_theta" not in source:
        _report("attn_config.rope", None, "an MPT model with learned positions or ALiBi biases", strict)
    optional, default = _OPTIONAL.get(model, ("", ""))
    for key in _POSITIONS:
        kind = source.get(key) or (default if key == optional else None)
        if kind == "absolute" and key != optional and any(source.get(name) for name in _BASES):
            continue  # BERT's default, which ModernBERT and others carry along
        if kind is not None and not any(word in str(kind).lower() for word in _ROTARY_WORDS):
            _report(key, source.get(key), "positions that are not rotary", strict)


def _report(key: str, value: Any, meaning: str, strict: bool) -> None:
    raise_or_warn(key, f"got {value!r}, {meaning}: nothing to rotate", strict)
