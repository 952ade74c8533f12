/* Counts the bytes that large copies move; loaded before the other libraries. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static size_t least_bytes, moved_bytes;

void count_from(size_t bytes) { least_bytes = bytes; moved_bytes = 0; }
size_t counted(void) { return moved_bytes; }

typedef void *copy(void *, const void *, size_t);

#define COUNT(name) \
    void *name(void *to, const void *from, size_t bytes) { \
        static copy *real; \
        if (!real) real = (copy *)dlsym(RTLD_NEXT, #name); \
        if (least_bytes && bytes >= least_bytes) moved_bytes += bytes; \
        return real(to, from, bytes); \
    }
COUNT(memcpy)
COUNT(memmove)

void *__memcpy_chk(void *to, const void *from, size_t bytes, size_t room) { (void)room; return memcpy(to, from, bytes); }
void *__memmove_chk(void *to, const void *from, size_t bytes, size_t room) { (void)room; return memmove(to, from, bytes); }
