/* exec_names.cpp: places and names for messages. A program counter or a kernel's address
 * becomes source text by addr2line, which comes with the compiler; only errors need it.
 */
#include "exec_state.h"

#include <cstdio>
#include <dlfcn.h>
#include <map>

namespace exec {

std::string text_of(uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," +
           std::to_string(i.z) + ")";
}

static std::string base_name(const std::string &path) {
    return path.substr(path.rfind('/') + 1); // all of it when there is no slash
}

std::string where(const Site &site) {
    return site.line ? base_name(site.file) + ":" + std::to_string(site.line) : "";
}

/* The function's name and the place, one line each, as addr2line says them. */
static std::pair<std::string, std::string> look_up(const void *pc) {
    static std::map<const void *, std::pair<std::string, std::string>> known;
    Dl_info module;
    std::string lines[2] = {"?", "?"};
    if (known.count(pc) != 0) {
        return known[pc];
    }
    if (dladdr(pc, &module) != 0) {
        char command[4200];
        snprintf(command, sizeof command, "addr2line -f -C -e '%s' %#zx",
                 module.dli_fname,
                 size_t(static_cast<const char *>(pc) -
                        static_cast<const char *>(module.dli_fbase)));
        if (FILE *out = popen(command, "r")) {
            char line[2000];
            for (std::string &text : lines) {
                if (fgets(line, sizeof line, out) != nullptr) {
                    text = line;
                    text.erase(text.find_last_not_of("\n") + 1);
                }
            }
            pclose(out);
        }
    }
    return known[pc] = {lines[0], lines[1]};
}

std::string place_of_pc(const void *pc) { // of the call, which lies before the return
    const std::string place = look_up(static_cast<const char *>(pc) - 1).second;
    return base_name(place.substr(0, place.find(" (discriminator")));
}

std::string name_of_kernel(const void *kernel) {
    std::string name = look_up(kernel).first;
    name = name.substr(0, name.find('('));
    return name.compare(0, 5, "void ") == 0 ? name.substr(5) : name;
}

} // namespace exec
