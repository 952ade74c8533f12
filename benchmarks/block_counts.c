// Plugin for QEMU (user mode, 6.0 and later): how often every translated block of a program ran.
//
//   cc -shared -fPIC -O2 -o block_counts.so block_counts.c
//   qemu-aarch64 -plugin ./block_counts.so -d plugin -D counts.txt PROGRAM
//
// Writes one line per block: address of its first instruction (hexadecimal), number of instructions, times that it ran.
// Instructions are four bytes long, as on aarch64. The program must have one thread, as counters are not atomic.
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// The part of qemu-plugin.h, version 1, that is used here; Debian's qemu-user has no header.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation, void* counter, uint64_t added);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, void*), void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb* block);
void qemu_plugin_outs(const char* text);

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int qemu_plugin_version = 1;

struct block {
    uint64_t address, instructions, runs;
    struct block* next;
};

static struct block* blocks;

// A block that is translated again has a second entry; readers add them up.
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* translation) {
    struct block* block = malloc(sizeof *block);
    (void)id;
    if (block == NULL) abort();
    *block = (struct block){qemu_plugin_tb_vaddr(translation), qemu_plugin_tb_n_insns(translation), 0, blocks};
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(translation, QEMU_PLUGIN_INLINE_ADD_U64, &block->runs, 1);
}

static void finished(qemu_plugin_id_t id, void* data) {
    char line[80];
    (void)id, (void)data;
    for (const struct block* block = blocks; block != NULL; block = block->next) {
        if (block->runs == 0) continue;
        snprintf(line, sizeof line, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", block->address, block->instructions, block->runs);
        qemu_plugin_outs(line);
    }
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int count, char** words) {
    (void)info, (void)count, (void)words;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
