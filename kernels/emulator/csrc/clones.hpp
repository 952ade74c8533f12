// Functions with this attribute are compiled twice on x86-64, and the processor's fastest version is chosen when the module is loaded.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(EMULATOR_SANITIZED)
#define EMULATOR_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define EMULATOR_CLONES
#endif
