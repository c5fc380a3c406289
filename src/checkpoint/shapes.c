#include "checkpoint/shapes.h"

#include <string.h>

static const struct codec_dims codec_small = {
    .latent = 64, .encoder_width = 8, .decoder_width = 96, .residual_books = 9,
    .layers = 2, .window = 16, .head_dim = 16, .n_head = 4, .intermediate = 192,
    .encoder_layers = 0, .table_length = 2048, .encoder_table_length = 0,
};

static const struct shape s1_nano = {
    .name = "s1-nano", .summary = "4.0 M parameters, every part of S1-mini; seconds on two cores",
    .config = {
        .family = FAMILY_S1,
        .slow = {.n_layer = 4, .n_head = 4, .n_kv_heads = 2, .head_dim = 32, .dim = 64,
                 .intermediate_size = 192, .qk_norm = true},
        .fast = {.n_layer = 2, .n_head = 4, .n_kv_heads = 2, .head_dim = 16, .dim = 64, .intermediate_size = 192},
        .vocab_size = 4672, .codebook_size = 4096, .num_codebooks = 10, .max_seq_len = 4096,
        .rope_base = 1000000, .norm_eps = 1e-6f, .scale_codebook_embeddings = true,
    },
    .initializer_range = "0.125", .n_ranks = 512, .codec = &codec_small, .head_sigma = 317, .fast_sigma = 273,
};

static const struct shape s1_micro = {
    .name = "s1-micro", .summary = "27 M parameters; for benchmarks that should not wait for s1-mini",
    .config = {
        .family = FAMILY_S1,
        .slow = {.n_layer = 8, .n_head = 8, .n_kv_heads = 4, .head_dim = 64, .dim = 256,
                 .intermediate_size = 768, .qk_norm = true},
        .fast = {.n_layer = 4, .n_head = 8, .n_kv_heads = 4, .head_dim = 32, .dim = 256, .intermediate_size = 768},
        .vocab_size = 4672, .codebook_size = 4096, .num_codebooks = 10, .max_seq_len = 4096,
        .rope_base = 1000000, .norm_eps = 1e-6f, .scale_codebook_embeddings = true,
    },
    .initializer_range = "0.0625", .n_ranks = 512, .codec = &codec_small, .head_sigma = 317, .fast_sigma = 273,
};

static const struct shape s1_mini = {
    .name = "s1-mini", .summary = "the published OpenAudio S1-mini: 860,169,216 parameters, 1.72 GB",
    .config = {
        .family = FAMILY_S1,
        .slow = {.n_layer = 28, .n_head = 16, .n_kv_heads = 8, .head_dim = 128, .dim = 1024,
                 .intermediate_size = 3072, .qk_norm = true},
        .fast = {.n_layer = 4, .n_head = 16, .n_kv_heads = 8, .head_dim = 64, .dim = 1024, .intermediate_size = 3072},
        .vocab_size = 155776, .codebook_size = 4096, .num_codebooks = 10, .max_seq_len = 8192,
        .rope_base = 1000000, .norm_eps = 1e-6f, .scale_codebook_embeddings = true,
    },
    .initializer_range = "0.03125", .n_ranks = 151643, .codec = &codec_dims_published,
    .head_sigma = 317, .fast_sigma = 273,
};

static const struct shape s2_nano = {
    .name = "s2-nano", .summary = "3.7 M parameters in the form of S2-pro (nested config.json, shards, tied head)",
    .config = {
        .family = FAMILY_S2,
        .slow = {.n_layer = 4, .n_head = 4, .n_kv_heads = 2, .head_dim = 32, .dim = 64,
                 .intermediate_size = 192, .qk_norm = true},
        .fast = {.n_layer = 2, .n_head = 4, .n_kv_heads = 2, .head_dim = 16, .dim = 64, .intermediate_size = 192},
        .vocab_size = 4672, .codebook_size = 4096, .num_codebooks = 10, .max_seq_len = 4096,
        .rope_base = 1000000, .norm_eps = 1e-6f, .tie_word_embeddings = true, .scale_codebook_embeddings = true,
        .norm_fastlayer_input = true, .semantic_begin_id = 547, .semantic_end_id = 4642, .im_end_id = 514,
    },
    .initializer_range = "0.125", .codec = &codec_small, .head_sigma = 317, .fast_sigma = 273,
};

static const struct shape s2_pro = {
    .name = "s2-pro", .summary = "the published S2-pro: 4,561,852,416 parameters, 9.12 GB",
    .config = {
        .family = FAMILY_S2,
        .slow = {.n_layer = 36, .n_head = 32, .n_kv_heads = 8, .head_dim = 128, .dim = 2560,
                 .intermediate_size = 9728, .qk_norm = true},
        .fast = {.n_layer = 4, .n_head = 32, .n_kv_heads = 8, .head_dim = 128, .dim = 2560, .intermediate_size = 9728},
        .vocab_size = 155776, .codebook_size = 4096, .num_codebooks = 10, .max_seq_len = 32768,
        .rope_base = 1000000, .norm_eps = 1e-6f, .tie_word_embeddings = true, .scale_codebook_embeddings = true,
        .norm_fastlayer_input = true, .semantic_begin_id = 151678, .semantic_end_id = 155773, .im_end_id = 151645,
    },
    .initializer_range = "0.01976423537605237", .codec = &codec_dims_published, .head_sigma = 317, .fast_sigma = 273,
};

const struct shape *const shapes[] = {&s1_nano, &s1_micro, &s1_mini, &s2_nano, &s2_pro, NULL};

const struct shape *shape_find(const char *name)
{
    for (int i = 0; shapes[i]; i++)
        if (strcmp(shapes[i]->name, name) == 0)
            return shapes[i];
    return NULL;
}
