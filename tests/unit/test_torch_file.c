/* The reader of torch.save archives: what it accepts is read right, what is wrong is refused with a reason. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "checkpoint/torch_file.h"
#include "zip_builder.h"

#include <stdio.h>

static const float numbers[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

static const struct pkl_tensor plain = {"FloatStorage", "0", 12, 0, 2, {3, 4}, {4, 1}};

/* Bytes that open files point into; freed when the next test begins. */
static unsigned char *kept[64];
static int            n_kept;

static int free_kept(void **state)
{
    while (n_kept)
        free(kept[--n_kept]);
    return 0;
}

static status_t parse(const struct bytes *b, struct torch_file **out)
{
    /* Exactly sized and exactly placed: the sanitizers then see every byte that is read too far. */
    unsigned char *copy = malloc(b->size ? b->size : 1);
    memcpy(copy, b->data, b->size);
    status_t st = torch_file_parse(copy, b->size, "test.pth", out);
    if (st == ST_OK && n_kept < 64)
        kept[n_kept++] = copy;
    else
        free(copy);
    return st;
}

/* The archive must be refused, and the message must contain `reason`. Frees b. */
static void refuse(struct bytes b, const char *reason)
{
    struct torch_file *f  = NULL;
    status_t           st = parse(&b, &f);
    bytes_free(&b);
    if (st != ST_EINPUT)
        fail_msg("want a refusal for \"%s\", got status %d", reason, st);
    if (!strstr(status_last(), reason))
        fail_msg("want the reason \"%s\", got \"%s\"", reason, status_last());
    if (strchr(status_last(), '\n') || strncmp(status_last(), "test.pth", 8) != 0)
        fail_msg("want one line that names the file, got \"%s\"", status_last());
}

static void refuse_pickle(struct bytes pickle, const char *reason)
{
    struct bytes b = torch_build(&pickle, numbers, sizeof numbers);
    bytes_free(&pickle);
    refuse(b, reason);
}

static struct bytes text_pickle(const char *text, size_t n)
{
    struct bytes b = {0};
    bytes_text(&b, "\x80\x02");
    bytes_put(&b, text, n);
    return b;
}

#define REFUSE_OPCODES(text, reason) refuse_pickle(text_pickle(text, sizeof(text) - 1), reason)

static void refuse_tensor(struct pkl_tensor t, const char *reason)
{
    refuse_pickle(pkl_one("w", &t), reason);
}

static struct torch_file *accept(struct bytes b)
{
    struct torch_file *f  = NULL;
    status_t           st = parse(&b, &f);
    bytes_free(&b);
    if (st != ST_OK)
        fail_msg("refused: %s", status_last());
    return f;
}

static struct torch_file *accept_pickle(struct bytes pickle)
{
    struct bytes b = torch_build(&pickle, numbers, sizeof numbers);
    bytes_free(&pickle);
    return accept(b);
}

/* ---- what is right ---- */

static void a_contiguous_tensor_points_into_the_file(void **state)
{
    struct torch_file   *f = accept_pickle(pkl_one("layer.weight", &plain));
    const struct tensor *t = tensor_set_find(torch_file_tensors(f), "layer.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 3);
    assert_int_equal(t->bytes, 48);
    assert_memory_equal(t->data, numbers, 48);
    assert_string_equal(torch_file_first_key(f), "layer.weight");
    torch_file_close(f);
}

static void a_transposed_view_is_copied_in_row_major_order(void **state)
{
    struct pkl_tensor    t = {"FloatStorage", "0", 12, 0, 2, {4, 3}, {1, 4}};
    struct torch_file   *f = accept_pickle(pkl_one("w", &t));
    const struct tensor *w = tensor_set_find(torch_file_tensors(f), "w");
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++) {
            float x;
            memcpy(&x, (const char *)w->data + 4 * (3 * i + j), 4);
            assert_true(x == numbers[4 * j + i]);
        }
    torch_file_close(f);
}

static void a_slice_with_an_offset_takes_the_right_elements(void **state)
{
    struct pkl_tensor    t = {"FloatStorage", "0", 12, 1, 2, {2, 2}, {8, 2}}; /* [1, 3; 9, 11] */
    struct torch_file   *f = accept_pickle(pkl_one("w", &t));
    const float          want[4] = {1, 3, 9, 11};
    assert_memory_equal(tensor_set_find(torch_file_tensors(f), "w")->data, want, 16);
    torch_file_close(f);
}

static void scalars_empty_tensors_and_odd_strides_of_single_rows_are_legal(void **state)
{
    struct pkl_tensor  scalar = {"FloatStorage", "0", 12, 5, 0, {0}, {0}};
    struct pkl_tensor  empty  = {"FloatStorage", "0", 12, 12, 2, {0, 7}, {7, 1}};
    struct pkl_tensor  row    = {"FloatStorage", "0", 12, 0, 3, {1, 12, 1}, {999, 1, 77}};
    struct torch_file *f      = accept_pickle(pkl_one("w", &scalar));
    float              x;
    memcpy(&x, tensor_set_find(torch_file_tensors(f), "w")->data, 4);
    assert_true(x == 5);
    torch_file_close(f);
    f = accept_pickle(pkl_one("w", &empty));
    assert_int_equal(tensor_set_find(torch_file_tensors(f), "w")->bytes, 0);
    torch_file_close(f);
    f = accept_pickle(pkl_one("w", &row));
    assert_memory_equal(tensor_set_find(torch_file_tensors(f), "w")->data, numbers, 48);
    torch_file_close(f);
}

static void two_tensors_may_share_a_storage(void **state)
{
    struct bytes      p    = {0};
    struct pkl_tensor half = {"FloatStorage", "0", 12, 6, 1, {6}, {1}};
    bytes_text(&p, "\x80\x02}(");
    pkl_text(&p, "a");
    pkl_put_tensor(&p, &plain);
    pkl_text(&p, "b");
    pkl_put_tensor(&p, &half);
    bytes_text(&p, "u.");
    struct torch_file       *f   = accept_pickle(p);
    const struct tensor_set *set = torch_file_tensors(f);
    assert_ptr_equal((const char *)tensor_set_find(set, "a")->data + 24, tensor_set_find(set, "b")->data);
    torch_file_close(f);
}

static void the_state_dict_of_a_training_checkpoint_is_taken(void **state)
{
    struct bytes p = {0};
    bytes_text(&p, "\x80\x02}(");
    pkl_text(&p, "epoch");
    bytes_text(&p, "K\x07");
    pkl_text(&p, "hyper");
    bytes_put(&p, "]q\x01(G\x3f\xf0\0\0\0\0\0\0N\x88K\x01" "e", 18);
    pkl_text(&p, "state_dict");
    bytes_text(&p, "ccollections\nOrderedDict\n)R(");
    pkl_text(&p, "model.w");
    pkl_put_tensor(&p, &plain);
    bytes_text(&p, "u}");
    pkl_text(&p, "_metadata");
    bytes_text(&p, "ccollections\nOrderedDict\n)Rsb"); /* BUILD with {"_metadata": …} */
    bytes_text(&p, "u.");
    struct torch_file *f = accept_pickle(p);
    assert_int_equal(torch_file_tensors(f)->count, 1);
    assert_string_equal(torch_file_tensors(f)->items[0].name, "model.w");
    assert_string_equal(torch_file_first_key(f), "model.w");
    torch_file_close(f);
}

static void parameters_are_unwrapped_and_untyped_storages_take_their_dtype(void **state)
{
    struct bytes p = {0};
    bytes_text(&p, "\x80\x02}(");
    pkl_text(&p, "p");
    bytes_text(&p, "ctorch._utils\n_rebuild_parameter\n(");
    pkl_put_tensor(&p, &plain);
    bytes_text(&p, "\x88" "ccollections\nOrderedDict\n)RtR");
    pkl_text(&p, "f8");
    bytes_text(&p, "ctorch._utils\n_rebuild_tensor_v3\n(");
    pkl_storage(&p, "torch.storage", "UntypedStorage", "0", 48);
    bytes_text(&p, "K\x04(K\x28t(K\x01t\x89" "ccollections\nOrderedDict\n)Rctorch\nfloat8_e4m3fn\ntR");
    bytes_text(&p, "u.");
    struct torch_file   *f = accept_pickle(p);
    const struct tensor *t = tensor_set_find(torch_file_tensors(f), "f8");
    assert_int_equal(tensor_set_find(torch_file_tensors(f), "p")->bytes, 48);
    assert_int_equal(t->dtype, DT_F8_E4M3);
    assert_int_equal(t->bytes, 40);
    assert_memory_equal(t->data, (const char *)numbers + 4, 40);
    torch_file_close(f);
}

static void frames_and_memoize_of_newer_protocols_are_read(void **state)
{
    struct bytes p = {0};
    bytes_put(&p, "\x80\x04\x95\0\x10\0\0\0\0\0\0}\x94(\x8c\x01w\x94", 18);
    pkl_put_tensor(&p, &plain);
    bytes_text(&p, "u.");
    struct torch_file *f = accept_pickle(p);
    assert_int_equal(torch_file_tensors(f)->count, 1);
    torch_file_close(f);
}

static void zip64_fields_are_followed(void **state)
{
    struct bytes      p         = pkl_one("w", &plain);
    struct zip_member members[] = {{.name = "m/data.pkl", .data = p.data, .size = p.size, .zip64 = true},
                                   {.name = "m/data/0", .data = numbers, .size = 48, .zip64 = true},
                                   {.name = "m/version", .data = "3\n", .size = 2}};
    struct zip_ends   ends      = {.zip64 = true, .comment = "a comment"};
    struct torch_file *f        = accept(zip_build(members, 3, &ends));
    assert_memory_equal(tensor_set_find(torch_file_tensors(f), "w")->data, numbers, 48);
    torch_file_close(f);
    bytes_free(&p);
}

/* ---- archives that are wrong ---- */

/* A right archive with one member replaced or one added. */
static struct bytes with_member(struct zip_member extra, int replaces, const struct zip_ends *ends)
{
    struct bytes      p = pkl_one("w", &plain);
    struct zip_member members[5] = {{.name = "m/data.pkl", .data = p.data, .size = p.size},
                                    {.name = "m/byteorder", .data = "little", .size = 6},
                                    {.name = "m/data/0", .data = numbers, .size = 48},
                                    {.name = "m/version", .data = "3\n", .size = 2}};
    int               n = 4;
    if (extra.name)
        members[replaces >= 0 ? replaces : n++] = extra;
    struct bytes b = zip_build(members, (size_t)n, ends);
    bytes_free(&p);
    return b;
}

static void every_cut_of_an_archive_is_refused(void **state)
{
    struct bytes b = with_member((struct zip_member){0}, -1, NULL);
    for (size_t n = 0; n < b.size; n++) {
        struct bytes       cut = {b.data, n, 0};
        struct torch_file *f   = NULL;
        if (parse(&cut, &f) != ST_EINPUT)
            fail_msg("%zu of %zu bytes were accepted", n, b.size);
    }
    bytes_free(&b);
}

/* Flipping any byte may still give a legal file; it must never crash, hang or read outside (the sanitizers watch). */
static void every_changed_byte_is_survived(void **state)
{
    struct bytes b = with_member((struct zip_member){0}, -1, NULL);
    for (size_t i = 0; i < b.size; i++)
        for (int k = 0; k < 3; k++) {
            unsigned char      old = b.data[i];
            struct torch_file *f   = NULL;
            b.data[i]              = k == 0 ? (unsigned char)(old ^ 0x80) : k == 1 ? 0xff : 0;
            if (torch_file_parse(b.data, b.size, "test.pth", &f) == ST_OK)
                torch_file_close(f);
            b.data[i] = old;
        }
    bytes_free(&b);
}

static void files_of_other_kinds_are_named(void **state)
{
    struct bytes legacy = {0}, other = {0};
    bytes_put(&legacy, "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", 21);
    for (int i = 0; i < 8; i++)
        bytes_text(&other, "not a torch file at all. ");
    refuse(legacy, "legacy torch.save format");
    refuse(other, "not a torch.save file");
    refuse(with_member((struct zip_member){.name = "m/constants.pkl", .data = "", .size = 0}, -1, NULL), "TorchScript");
    refuse(with_member((struct zip_member){.name = "m/code/x.py", .data = "", .size = 0}, -1, NULL), "TorchScript");
    refuse(with_member((struct zip_member){.name = "m/version", .data = "99\n", .size = 3}, 3, NULL), "version");
    refuse(with_member((struct zip_member){.name = "m/versions", .data = "3\n", .size = 2}, 3, NULL), "version");
    refuse(with_member((struct zip_member){.name = "m/byteorder", .data = "big", .size = 3}, 1, NULL), "big-endian");
    refuse(with_member((struct zip_member){.name = "m/data.pklx", .data = "", .size = 0}, 0, NULL), "data.pkl");
}

static void compressed_encrypted_and_spanned_archives_are_refused(void **state)
{
    struct zip_ends second_disk = {.disk = 1};
    refuse(with_member((struct zip_member){.name = "m/data/0", .data = numbers, .size = 48, .method = 8}, 2, NULL),
           "compressed");
    refuse(with_member((struct zip_member){.name = "m/data/0", .data = numbers, .size = 48, .flags = 1}, 2, NULL),
           "encrypted");
    refuse(with_member((struct zip_member){0}, -1, &second_disk), "several parts");
}

/* A few bytes that claim to be gigabytes: by their size, by sharing one payload, by overlapping. */
static void zip_bombs_are_refused(void **state)
{
    refuse(with_member((struct zip_member){.name = "m/data/0", .data = numbers, .size = 48, .claim_size = 1u << 31}, 2, NULL),
           "two sizes");
    refuse(with_member((struct zip_member){.name = "m/data/1", .data = "", .size = 0, .claim_offset = 1}, -1, NULL),
           "disagree");
    struct bytes      p         = pkl_one("w", &plain);
    struct zip_member members[] = {{.name = "m/data.pkl", .data = p.data, .size = p.size},
                                   {.name = "m/data/0", .data = numbers, .size = 48},
                                   {.name = "m/data/0", .data = numbers, .size = 48, .claim_offset = 1}};
    members[2].claim_offset     = 1 + 30 + strlen("m/data.pkl") + p.size; /* the local header of the second */
    refuse(zip_build(members, 3, NULL), "overlap");
    bytes_free(&p);
}

static void entries_outside_the_file_are_refused(void **state)
{
    struct zip_ends far = {.claim_cd_offset = 1u << 30}, wide = {.claim_cd_size = 1u << 30}, many = {.claim_count = 60000};
    struct zip_ends none = {.claim_count = 1}, lost = {.zip64 = true, .claim_zip64_offset = UINT64_MAX};
    refuse(with_member((struct zip_member){.name = "m/data/0", .data = numbers, .size = 48, .claim_offset = 1u << 30}, 2, NULL),
           "no local header");
    refuse(with_member((struct zip_member){0}, -1, &far), "outside the file");
    refuse(with_member((struct zip_member){0}, -1, &wide), "outside the file");
    refuse(with_member((struct zip_member){0}, -1, &many), "claims");
    refuse(with_member((struct zip_member){0}, -1, &none), "claims");
    refuse(with_member((struct zip_member){0}, -1, &lost), "Zip64");
    refuse(with_member((struct zip_member){.name = "m/data/0", .data = numbers, .size = 48, .zip64_without_extra = true}, 2,
                       NULL),
           "Zip64");
}

static void unsafe_and_repeated_names_are_refused(void **state)
{
    static char longest[600];
    memset(longest, 'a', sizeof longest - 1);
    memcpy(longest, "m/", 2);
    const char *const unsafe[] = {"m/../x", "..", "/m/x", "m\\x", "m/\x01", longest};
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        refuse(with_member((struct zip_member){.name = unsafe[i], .data = "", .size = 0}, -1, NULL), "unsafe name");
    refuse(with_member((struct zip_member){.name = "m/a\0b", .name_length = 5, .data = "", .size = 0}, -1, NULL), "unsafe");
    refuse(with_member((struct zip_member){.name = "m/version", .data = "3\n", .size = 2}, -1, NULL), "two zip entries");
    refuse(with_member((struct zip_member){.name = "n/x", .data = "", .size = 0}, -1, NULL), "outside the folder");
    refuse(with_member((struct zip_member){.name = "m/x", .local_name = "m/y", .data = "", .size = 0}, -1, NULL),
           "disagree");
}

/* ---- pickles that are wrong ---- */

static void pickles_that_would_run_code_are_refused(void **state)
{
    REFUSE_OPCODES("cposix\nsystem\nX\x02\0\0\0id\x85R.", "posix.system");
    REFUSE_OPCODES("c__builtin__\neval\n(X\x01\0\0\0" "1tR.", "__builtin__.eval");
    REFUSE_OPCODES("ctorch\nload\n.", "torch.load");
    REFUSE_OPCODES("ctorch.nn.modules.linear\nLinear\n)\x81}b.", "torch.nn.modules.linear.Linear");
    REFUSE_OPCODES("ctorchao.dtypes\nAffineQuantizedTensor\n.", "TorchAO");
    REFUSE_OPCODES("X\x05\0\0\0posixX\x06\0\0\0system\x93.", "0x93"); /* STACK_GLOBAL */
    REFUSE_OPCODES("(X\x02\0\0\0idios\nsystem\n.", "0x69");           /* INST         */
    REFUSE_OPCODES("(cos\nsystem\no.", "os.system");                  /* OBJ          */
    REFUSE_OPCODES("ccollections\nOrderedDict\n)\x81.", "0x81");      /* NEWOBJ       */
    REFUSE_OPCODES("\x82\x01.", "0x82");                              /* EXT1         */
    REFUSE_OPCODES("Pid\n.", "0x50");                                 /* PERSID       */
    REFUSE_OPCODES("B\x01\0\0\0a.", "0x42");                          /* BINBYTES     */
    REFUSE_OPCODES("}2.", "0x32");                                    /* DUP          */
    REFUSE_OPCODES("}0.", "0x30");                                    /* POP          */
    REFUSE_OPCODES("c\x1b[31m\nx\n.", "not printable");
}

static void pickles_that_are_not_well_formed_are_refused(void **state)
{
    static char name[400] = "c";
    memset(name + 1, 'a', 300);
    strcat(name, "\nx\n.");
    REFUSE_OPCODES("", "without a stop");
    REFUSE_OPCODES(".", "too short");
    REFUSE_OPCODES("}", "without a stop");
    REFUSE_OPCODES("}}.", "values left");
    REFUSE_OPCODES("X\xff\xff\xff\xff", "text of 4294967295 bytes");
    REFUSE_OPCODES("X\x10\0\0\0ab", "inside an operand");
    REFUSE_OPCODES("G\0\0", "inside an operand");
    REFUSE_OPCODES("ctorch", "inside a name");
    REFUSE_OPCODES("h\x05.", "slot 5 is empty");
    REFUSE_OPCODES("}r\xff\xff\xff\x7f.", "out of range");
    REFUSE_OPCODES("q\x01.", "too short");
    REFUSE_OPCODES("(q\x01.", "too short");
    REFUSE_OPCODES("t.", "no mark");
    REFUSE_OPCODES("u.", "no mark");
    REFUSE_OPCODES("(u.", "not a dict");
    REFUSE_OPCODES("}(K\x01u.", "not a dict");
    REFUSE_OPCODES("}s.", "not a dict");
    REFUSE_OPCODES("](K\x01" "eK\x01" "a(e.", "no mapping");
    REFUSE_OPCODES("}K\x01" "a.", "not a list");
    REFUSE_OPCODES("}K\x01" "b.", "state");
    REFUSE_OPCODES("K\x01K\x02R.", "not one");
    REFUSE_OPCODES("ctorch\nFloatStorage\n)R.", "not a function");
    REFUSE_OPCODES("ccollections\nOrderedDict\n(K\x01tR.", "arguments");
    REFUSE_OPCODES("ctorch._utils\n_rebuild_tensor_v2\n)R.", "wrong arguments");
    REFUSE_OPCODES("ctorch._utils\n_rebuild_parameter\n(K\x01K\x01K\x01tR.", "not a tensor");
    REFUSE_OPCODES("K\x01Q.", "persistent id");
    REFUSE_OPCODES("(X\x07\0\0\0storageK\x01K\x01K\x01K\x01tQ.", "storage class");
    REFUSE_OPCODES("\x8a\x09" "123456789.", "9 bytes");
    REFUSE_OPCODES("].", "no mapping");
    REFUSE_OPCODES("\x80\x07}.", "protocol 7");
    refuse_pickle(text_pickle(name, strlen(name)), "too long");
    struct bytes empty = {0};
    bytes_text(&empty, "}.");
    refuse_pickle(empty, "not a pickle");
}

static void structures_that_grow_without_bound_are_refused(void **state)
{
    struct bytes deep = {0}, wide = {0};
    bytes_text(&deep, "\x80\x02");
    for (int i = 0; i < 100001; i++)
        bytes_text(&deep, "(");
    refuse_pickle(deep, "values on the stack");

    /* A dict costs one byte of pickle and 48 of memory; the stack's bound does not see those put away in tuples. */
    struct bytes block = {0};
    bytes_text(&block, "(");
    for (int i = 0; i < 60000; i++)
        bytes_text(&block, "}");
    bytes_text(&block, "t");
    bytes_text(&wide, "\x80\x02");
    for (int i = 0; i < 50; i++)
        bytes_put(&wide, block.data, block.size);
    bytes_free(&block);
    refuse_pickle(wide, "MB of memory");
}

static void storages_that_do_not_fit_are_refused(void **state)
{
    struct pkl_tensor t = plain;
    t.key               = "7";
    refuse_tensor(t, "storage 7, which the file does not have");
    t.key = "../0";
    refuse_tensor(t, "key is not a number");
    t.key = "123456789012345678901";
    refuse_tensor(t, "usable key");
    t          = plain;
    t.elements = 13;
    refuse_tensor(t, "should hold 13 elements");
    t.elements = 6;
    refuse_tensor(t, "should hold 6 elements");
    t.elements = INT64_MAX;
    refuse_tensor(t, "should hold");
    t.elements = -12;
    refuse_tensor(t, "location or size");
    t       = plain;
    t.class = "DoubleStorage";
    refuse_tensor(t, "should hold 12 elements of F64");
    t.class = "ComplexFloatStorage";
    refuse_tensor(t, "torch.ComplexFloatStorage");
}

static void tensors_that_leave_their_storage_are_refused(void **state)
{
    struct pkl_tensor t = plain;
    t.offset            = 1;
    refuse_tensor(t, "beyond its storage");
    t.offset = INT64_MAX;
    refuse_tensor(t, "beyond its storage");
    t.offset = -1;
    refuse_tensor(t, "negative offset");
    t          = plain;
    t.shape[0] = 4;
    refuse_tensor(t, "beyond its storage");
    t.shape[0] = -3;
    refuse_tensor(t, "not counts");
    t           = plain;
    t.stride[0] = INT64_MAX / 2;
    refuse_tensor(t, "beyond its storage");
    t.stride[0] = -4;
    refuse_tensor(t, "not counts");
    struct pkl_tensor huge = {"FloatStorage", "0", 12, 0, 3, {INT64_C(1) << 31, INT64_C(1) << 31, 4}, {0, 0, 1}};
    refuse_tensor(huge, "more than 63 bits");
    struct pkl_tensor hidden = {"FloatStorage", "0", 12, 0, 4, {0, INT64_C(1) << 40, INT64_C(1) << 40, 1}, {1, 1, 1, 1}};
    refuse_tensor(hidden, "more than 63 bits");
    struct pkl_tensor expanded = {"FloatStorage", "0", 12, 0, 2, {1 << 20, 12}, {0, 1}};
    refuse_tensor(expanded, "strides repeat data");
    struct pkl_tensor ranks = {"FloatStorage", "0", 12, 0, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}};
    refuse_tensor(ranks, "9 dimensions");
}

static void bad_names_are_refused(void **state)
{
    static char long_name[1100];
    memset(long_name, 'n', sizeof long_name - 1);
    refuse_pickle(pkl_one("", &plain), "UTF-8");
    refuse_pickle(pkl_one("a\nb", &plain), "UTF-8");
    refuse_pickle(pkl_one("a\x1b[2J", &plain), "UTF-8");
    refuse_pickle(pkl_one("a\xc3", &plain), "UTF-8");
    refuse_pickle(pkl_one("a\xed\xa0\x80", &plain), "UTF-8");
    refuse_pickle(pkl_one(long_name, &plain), "UTF-8");
    struct bytes twice = {0};
    bytes_text(&twice, "\x80\x02}(");
    for (int i = 0; i < 2; i++) {
        pkl_text(&twice, "w");
        pkl_put_tensor(&twice, &plain);
    }
    bytes_text(&twice, "u.");
    refuse_pickle(twice, "two tensors are named \"w\"");
}

#define TEST(name) cmocka_unit_test_teardown(name, free_kept)

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        TEST(a_contiguous_tensor_points_into_the_file),
        TEST(a_transposed_view_is_copied_in_row_major_order),
        TEST(a_slice_with_an_offset_takes_the_right_elements),
        TEST(scalars_empty_tensors_and_odd_strides_of_single_rows_are_legal),
        TEST(two_tensors_may_share_a_storage),
        TEST(the_state_dict_of_a_training_checkpoint_is_taken),
        TEST(parameters_are_unwrapped_and_untyped_storages_take_their_dtype),
        TEST(frames_and_memoize_of_newer_protocols_are_read),
        TEST(zip64_fields_are_followed),
        TEST(every_cut_of_an_archive_is_refused),
        TEST(every_changed_byte_is_survived),
        TEST(files_of_other_kinds_are_named),
        TEST(compressed_encrypted_and_spanned_archives_are_refused),
        TEST(zip_bombs_are_refused),
        TEST(entries_outside_the_file_are_refused),
        TEST(unsafe_and_repeated_names_are_refused),
        TEST(pickles_that_would_run_code_are_refused),
        TEST(pickles_that_are_not_well_formed_are_refused),
        TEST(structures_that_grow_without_bound_are_refused),
        TEST(storages_that_do_not_fit_are_refused),
        TEST(tensors_that_leave_their_storage_are_refused),
        TEST(bad_names_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
