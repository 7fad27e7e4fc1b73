# %% [markdown]
# # 01 · How does a machine that knows only numbers hold any text?
#
# A language model adds and multiplies numbers. It never sees a letter. Before anything else, then, every text in every
# script has to become a row of numbers, and the row has to become the same text again, to the last accent.
#
# The answer is from 1992, fits on a page, and goes wrong every day. Here you work it out by hand, break it, mend
# it, and find that it already gives a language model its first vocabulary: 256 tokens, and no text that they cannot
# write.
#
# | | |
# |---|---|
# | Before this | Python's strings, lists and loops; binary and hexadecimal numbers |
# | Minutes | 35 to read, 50 more for the exercises |
# | Hardware | any computer; no GPU, no network; the whole notebook runs in less than a minute |
#
# Words used below, each explained where it first matters:
#
# | word or sign | meaning |
# |---|---|
# | code point, U+00E9 | the number that Unicode gives to a character, in hexadecimal |
# | byte | a number from 0 to 255: eight bits |
# | UTF-8 | the rule that writes a code point as one to four bytes |
# | *n₁, n₂, n₃, n₄* | how many characters of a text take 1, 2, 3, 4 bytes |
# | *V*, *d* | size of a vocabulary; numbers that a model keeps for each of its entries |

# %% [markdown]
# ## 1. Four characters, ten bytes
#
# Start with something that runs. Four characters go in, ten numbers come out, and the four characters come back.

# %%
text = "Aé€😀"
data = text.encode("utf-8")
print(list(data))
print(data.decode("utf-8") == text)

# %% [markdown]
# Two steps hide in there. First every character becomes a number: `ord` looks it up, `chr` goes back. The list of these
# numbers is Unicode, and a number in it is called a *code point*.

# %%
for character in text:
    print(f"{ord(character):7,}   U+{ord(character):04X}")

# %% [markdown]
# The first 128 are the old ASCII table, so "A" is 65 as it was in 1963. The last is U+10FFFF: 1,114,112 numbers
# in all.
#
# Second, the number has to be stored. Four bytes for each would do, and would make every English text four times as
# long. UTF-8 (Ken Thompson and Rob Pike, 1992; today RFC 3629) spends as few as it can. The first byte says how many
# there are, each following byte begins with the bits 10, and the x's hold the code point:
#
# | code points | bytes | room |
# |---|---|---|
# | U+0000 to U+007F | `0xxxxxxx` | 7 bits |
# | U+0080 to U+07FF | `110xxxxx 10xxxxxx` | 11 bits |
# | U+0800 to U+FFFF | `1110xxxx 10xxxxxx 10xxxxxx` | 16 bits |
# | U+10000 to U+10FFFF | `11110xxx 10xxxxxx 10xxxxxx 10xxxxxx` | 21 bits |
#
# By hand, for the three that need more than one byte. Write the code point in binary, cut it into sixes from the right,
# and put the marks in front:
#
# - **é** is U+00E9 = `00011 101001`, so `110`00011 `10`101001 = C3 A9.
# - **€** is U+20AC = `0010 000010 101100`, so `1110`0010 `10`000010 `10`101100 = E2 82 AC.
# - **😀** is U+1F600 = `000 011111 011000 000000`, so `11110`000 `10`011111 `10`011000 `10`000000 = F0 9F 98 80.
#
# And **A** is U+0041 = `1000001`, so `0`1000001 = 41, one byte, as before Unicode.
#
# Is that what Python stores?

# %%
for character in text:
    print(" ".join(f"{byte:08b}" for byte in character.encode("utf-8")))

# %% [markdown]
# Now the same by a few lines of code. `>>` drops bits at the right end, `&` keeps some, `|` puts the marks in front.


# %%
def utf8_by_hand(code):
    if code < 0x80:
        return bytes([code])
    if code < 0x800:
        return bytes([0b110_00000 | code >> 6, 0x80 | code & 0x3F])
    if code < 0x10000:
        return bytes([0b1110_0000 | code >> 12, 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F])
    return bytes([0b11110_000 | code >> 18] + [0x80 | code >> shift & 0x3F for shift in (12, 6, 0)])


print([utf8_by_hand(ord(character)).hex(" ") for character in text])

# %% [markdown]
# An outside judge: Python's own codec, asked about *every* code point that may be encoded. Section 2 tells why some may
# not.

# %%
encodable = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
assert all(utf8_by_hand(code) == chr(code).encode("utf-8") for code in encodable)
print(f"{len(encodable):,} code points, all equal")

# %% [markdown]
# Here is the picture to remember. Each row is a byte, the grey bits are marks, the white ones carry the code point. No
# byte can be mistaken: one that begins with 0 stands alone, with 11 begins a character, with 10 continues one.

# %%
import numpy as np

bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)  # (bytes · 8,) -> (bytes, 8)
leading_ones = bits.argmin(axis=1)  # (bytes,): where the first 0 is
is_mark = np.arange(8) <= leading_ones[:, None]  # (8,) against (bytes, 1) -> (bytes, 8)
print(bits.shape, is_mark.sum(axis=1))

# %% [markdown]
# Drawn:

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.imshow(is_mark, cmap="gray_r", vmin=0, vmax=2.5, aspect="auto")
for row, column in np.ndindex(bits.shape):
    axes.text(column, row, bits[row, column], ha="center", va="center", family="monospace")
names = [f"U+{ord(c):04X}, byte {i + 1}" for c in text for i in range(len(c.encode()))]
axes.set_yticks(range(len(data)), [f"{name}   {byte:02X}" for name, byte in zip(names, data, strict=True)])
axes.set_xticks(range(8), range(7, -1, -1))
axes.set(xlabel="bit (its power of two)", title="Marks (grey) and code points (white)")
plt.show()

# %% [markdown]
# **Predict before you run.** "naïve café" has ten characters. How many bytes does it take?

# %%
print(len("naïve café"), "characters,", len("naïve café".encode()), "bytes")

# %% [markdown]
# Twelve: ï and é take two each. That is the whole cost formula of UTF-8. With *n₁ … n₄* characters of each length,
#
# $$\text{bytes} = n_1 + 2\,n_2 + 3\,n_3 + 4\,n_4$$
#
# How long a character is follows from where its code point lies among three limits. Beside the formula, the
# measurement:


# %%
def lengths(text):
    """How many bytes each character takes, from the formula's limits alone: int (characters,)."""
    codes = np.array([ord(character) for character in text], dtype=np.int64)
    return np.searchsorted([0x80, 0x800, 0x10000], codes, side="right") + 1


counts = np.bincount(lengths("Aé€😀 naïve"), minlength=5)[1:]  # n₁, n₂, n₃, n₄
print(counts, "->", counts @ [1, 2, 3, 4], "bytes; measured:", len("Aé€😀 naïve".encode()))  # (4,) @ (4,) -> ()

# %% [markdown]
# The same formula for all of Unicode, with numbers that you can find by hand. One byte: 128. Two: 2¹¹ - 128 = 1,920.
# Three: 2¹⁶ - 2¹¹ = 63,488, less the 2,048 of the next section: 61,440. Four: 0x110000 - 2¹⁶ = 1,048,576.

# %%
measured = np.bincount([len(utf8_by_hand(code)) for code in encodable])[1:]
assert measured.tolist() == [128, 2**11 - 128, 2**16 - 2**11 - 2048, 0x110000 - 2**16]
print([f"{n:,}" for n in measured.tolist()], f"sum {measured.sum():,}")

# %% [markdown]
# ## 2. The 2,048 holes: surrogates
#
# JavaScript, Java and Windows keep text in 16-bit units (UTF-16), and 😀 does not fit into 16 bits. So 2,048 code
# points, U+D800 to U+DFFF, are set aside and stand for no character. Two of them, a *surrogate pair*, carry 20 bits:

# %%
rest = ord("😀") - 0x10000  # 20 bits
high, low = 0xD800 | rest >> 10, 0xDC00 | rest & 0x3FF
print(f"{high:04X} {low:04X}", "  Python's codec:", "😀".encode("utf-16-be").hex(" ", 2).upper())

# %% [markdown]
# One half alone is no text, and UTF-8 has no bytes for it. It turns up where somebody cut a JavaScript string in the
# middle of an emoji. Python can hold it and cannot write it.

# %%
half = "\ud83d"
try:
    half.encode("utf-8")
except UnicodeEncodeError as error:
    print(error.reason)

# %% [markdown]
# A tokenizer must not fall over such input. Ours does as `tiktoken` does: a lone half becomes U+FFFD, the character
# that says "something was lost here". A tokenizer that has learned no merges has just the 256 bytes, so its ids are
# bytes.

# %%
from working_with_text_data.bytepair_enc import BytePairTokenizer

byte_tokenizer = BytePairTokenizer.from_merges([])  # 256 bytes and <|endoftext|>
ids = byte_tokenizer.encode_ordinary("a" + half + "b")
print(ids, byte_tokenizer.to_tiktoken().encode_ordinary("a" + half + "b") == ids)

# %% [markdown]
# ## 3. One text, two spellings
#
# é can be one code point, or an e followed by U+0301, an accent that sits on whatever comes before it. On the screen
# they are the same.
#
# **Predict before you run.** How long is each, and are they equal?

# %%
composed, decomposed = "\u00e9", "e\u0301"
print(composed, decomposed, len(composed), len(decomposed), composed == decomposed)
print(composed.encode().hex(" "), "|", decomposed.encode().hex(" "))

# %% [markdown]
# They are not equal, and their bytes share nothing. Unicode defines *normal forms* that make them comparable (Unicode
# Standard Annex 15): NFC puts together what can be put together, NFD takes everything apart.

# %%
from unicodedata import normalize

print([len(normalize("NFC", spelling)) for spelling in (composed, decomposed)])
print([len(normalize("NFD", spelling)) for spelling in (composed, decomposed)])

# %% [markdown]
# There are two more forms, with a K for *compatibility*. They also replace characters by plainer ones. That helps a
# search, and destroys a text:

# %%
for before in ("x²", "ﬁn", "½ Å"):
    print(f"{before:5} NFC {normalize('NFC', before):5} NFKC {normalize('NFKC', before)}")

# %% [markdown]
# x² has become x2. A tokenizer that normalises cannot give back what it was given. Ours changes nothing, so that
# `decode(encode(text)) == text` for every text, and pays with two rows of ids for one word:

# %%
for word in ("caf" + composed, "caf" + decomposed):
    ids = byte_tokenizer.encode(word)
    assert byte_tokenizer.decode(ids) == word
    print(ids)

# %% [markdown]
# ## 4. One picture, many code points
#
# Emoji are put together too. A family is a man, a woman and a girl with a *joiner* (U+200D) between them. Let Python
# spell one.

# %%
import unicodedata

family = "👨‍👩‍👧"
print([unicodedata.name(character) for character in family])

# %% [markdown]
# **Predict before you run.** One picture on the screen. How many code points, how many UTF-16 units, how many bytes?


# %%
def sizes(text):
    """Code points, UTF-16 units, bytes."""
    return len(text), len(text.encode("utf-16-le")) // 2, len(text.encode())


print(sizes(family))

# %% [markdown]
# Five, eight, eighteen. So "how long is this text?" has four right answers. The fourth, what a reader would count, is a
# *grapheme cluster* (Unicode Standard Annex 29), and the `regex` package finds those with `\X`.

# %%
import regex

examples = {
    "letter A": "A",
    "e + accent": decomposed,
    "flag of France": "🇫🇷",
    "thumb, skin tone": "👍🏽",
    "family of three": family,
}
rows = np.array([(len(regex.findall(r"\X", t)), *sizes(t)) for t in examples.values()])  # (texts, 4)
print(rows)

# %% [markdown]
# Drawn from that table: each group of bars is one picture on the screen.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
units = ("what a reader counts", "code points", "UTF-16 units", "bytes")
for i, (unit, shade, hatch) in enumerate(zip(units, ("white", "0.8", "0.5", "black"), ("", "//", "", ""), strict=True)):
    axes.bar(
        np.arange(len(rows)) + 0.2 * (i - 1.5), rows[:, i], 0.2, color=shade, edgecolor="black", hatch=hatch, label=unit
    )
axes.set_xticks(range(len(examples)), examples, fontsize=8)
axes.set(ylabel="length (units)", title="Five pictures, four ways to count")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# None of this is a special case for a model that reads bytes. It sees eighteen numbers, and can learn that they go
# together.
#
# ## 5. The invisible character at the start
#
# Some Windows programs begin a UTF-8 file with the bytes EF BB BF, the *byte order mark*. Decoded, it is U+FEFF: a
# character that you cannot see, and that makes the first word of a file another word.

# %%
file_contents = b"\xef\xbb\xbfname,age\n"
header = file_contents.decode("utf-8").strip().split(",")
print(header[0], "name" in header, ascii(header[0]))

# %% [markdown]
# It looks right and is not found. Python has a codec that takes the mark off where there is one, and is content where
# there is none. Use it for files from elsewhere; this project's `text_files.py` does.

# %%
print([contents.decode("utf-8-sig") for contents in (b"\xef\xbb\xbfname", b"name")])

# %% [markdown]
# ## 6. A deliberate bug: the wrong table
#
# *Seen.* Here is a program with one word wrong in it. It reads a file that was written as UTF-8, with the table that
# Western European Windows calls cp1252.

# %%
original = "Zoë paid 5 € – naïve?"
broken = original.encode("utf-8").decode("cp1252")
print(broken)

# %% [markdown]
# You have met this on a parcel or in a newsletter. It has a name, *mojibake*, and no error is raised: nearly every byte
# is some character in cp1252. A model trained on such text learns to write such text.
#
# *Diagnosed.* Put the bytes under the characters that cp1252 reads from them.

# %%
for character in "ë€":
    wrong = [f"{byte:02X} is {bytes([byte]).decode('cp1252')}" for byte in character.encode()]
    print(f"{character}: {', '.join(wrong)}")

# %% [markdown]
# So "Ã" and "â" before another odd sign are the first bytes C3 and E2 of a character in UTF-8. That is the mark to look
# for.
#
# *Mended.* Nothing is lost yet. Walk back the way that the text came: encode with the wrong table, decode with the
# right one.

# %%
mended = broken.encode("cp1252").decode("utf-8")
assert mended == original
print(mended)

# %% [markdown]
# *What does not work.* Five of cp1252's 256 places are empty in Python. Text with one of those bytes cannot even be
# misread, and whoever passes `errors="replace"` at that moment destroys it. By hand: a two-byte character ends in one
# of 64 bytes, 5 of them empty, so 59/64 of the 1,920 survive: 1,770.


# %%
def survives(code):
    return "\ufffd" not in chr(code).encode().decode("cp1252", errors="replace")


print(sum(survives(code) for code in range(0x80, 0x800)), "of 1,920 survive")
print("the closing quote is lost:", "“fine”".encode().decode("cp1252", errors="replace"))

# %% [markdown]
# A file that goes through the wrong program every week gets worse every week. Each round reads every byte as a
# character of its own, and writes most of them as two or three. Let one é go round ten times.

# %%
word, length_after = "é", [1]
for _ in range(10):
    word = word.encode("utf-8").decode("cp1252")
    length_after.append(len(word))
print(length_after)

# %% [markdown]
# On an axis of powers it is nearly a straight line, so the growth is exponential. The slope says by how much each round
# multiplies.

# %%
ratio = length_after[-1] / length_after[-2]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.semilogy(length_after, "ko-", markersize=4)
axes.set(xlabel="wrong readings (rounds)", ylabel="length (characters)", title="One é, misread again and again")
axes.text(5, 8, f"last round: × {ratio:.2f}")
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 7. Cut in the middle
#
# Bytes arrive in parts: a network packet ends anywhere, and a model writes one token at a time. A part may end inside a
# character. Cut "5 €!" at every place:

# %%
parts = "5 €!".encode()
for cut in range(len(parts) + 1):
    print(cut, parts[:cut].decode("utf-8", errors="replace"))

# %% [markdown]
# With 3 or 4 of its 6 bytes, the € is not there yet, and `errors="replace"` shows � for what there is. Without it,
# Python raises an error.
#
# **Predict before you run.** A program decodes 😀 byte by byte, each byte by itself. What does it print?

# %%
print("".join(bytes([byte]).decode("utf-8", errors="replace") for byte in "😀".encode()))

# %% [markdown]
# Four marks for one emoji. This is how chat programs print `����` in the middle of an answer. The way out is to hold
# bytes back until they make a character.


# %%
class ToyStream:
    held = b""

    def feed(self, byte):
        self.held += bytes([byte])
        try:
            text, self.held = self.held.decode("utf-8"), b""
        except UnicodeDecodeError:
            return ""
        return text


stream = ToyStream()
print([stream.feed(byte) for byte in "é 😀".encode()])

# %% [markdown]
# The project's own is `StreamDecoder`. It takes token ids, which here are bytes. On good text it does what the toy
# does:

# %%
from working_with_text_data.bytepair_enc import StreamDecoder

message = "naïve 5 € 😀 日本 " + family
toy, module = ToyStream(), StreamDecoder(byte_tokenizer)
for byte in message.encode():
    assert toy.feed(byte) == module.feed(byte)
print("equal after each of", len(message.encode()), "bytes")

# %% [markdown]
# On bad bytes they differ. The toy waits for ever for a character that cannot come any more. Python's incremental
# decoder inside of the module knows UTF-8's rules, marks the damage and goes on.

# %%
damaged = b"a\xe2\x82b"  # two bytes of a €, then a letter
toy, module = ToyStream(), StreamDecoder(byte_tokenizer)
print("toy:   ", [toy.feed(byte) for byte in damaged])
print("module:", [module.feed(byte) for byte in damaged])

# %% [markdown]
# What a reader sees while the message comes in. The solid line counts the characters that the decoder has shown, all of
# them right. The dotted one counts the damage marks that decoding byte by byte would have put on the screen instead.

# %%
module = StreamDecoder(byte_tokenizer)
right = np.cumsum([len(module.feed(byte)) for byte in message.encode()])
wrong = np.cumsum([byte >= 0x80 for byte in message.encode()])  # each shown as one �
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.step(range(1, len(right) + 1), right, "k-", where="post", label="StreamDecoder: characters shown")
axes.step(range(1, len(right) + 1), wrong, "k:", where="post", label="byte by byte: damage marks shown")
axes.set(xlabel="bytes that have come", ylabel="characters", title="A message that comes in")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 8. One sentence in ten languages
#
# Now to the question of a language model: what should its *tokens* be, the units that it reads one at a time? Bytes
# would do. What would they cost? The first sentence of the Universal Declaration of Human Rights, article 1, in the
# translations that the United Nations publish:

# %%
sentences = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}
in_characters = np.array([len(sentence) for sentence in sentences.values()])  # (languages,)
in_bytes = np.array([len(sentence.encode()) for sentence in sentences.values()])  # (languages,)

# %% [markdown]
# **Predict before you run.** Which of the ten is the longest in bytes, and which takes the most bytes a character?

# %%
for language, characters, size in zip(sentences, in_characters, in_bytes, strict=True):
    assert size == lengths(sentences[language]).sum()  # the formula of section 1
    print(f"{language:9}{characters:4} characters {size:4} bytes   {size / characters:.2f} bytes a character")

# %% [markdown]
# Hindi is by far the longest. Japanese and Chinese take three bytes for every character, and Chinese is still the
# shortest of all: it needs the fewest characters. English takes one byte a character, because ASCII came first.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
place = np.arange(len(sentences))
axes.barh(place - 0.2, in_characters, 0.4, color="white", edgecolor="black", label="characters")
axes.barh(place + 0.2, in_bytes, 0.4, color="0.4", edgecolor="black", label="bytes")
axes.set_yticks(place, sentences)
axes.invert_yaxis()
axes.set(xlabel="length of the sentence (characters, bytes)", title="The same sentence")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# So a model that reads bytes needs more steps for the same thought, and in some languages many more. What would a model
# that reads code points need instead? A row of *d* numbers for each entry of its vocabulary, 4 bytes a number:
#
# $$\text{table} = 4\,V\,d \ \text{bytes}$$
#
# With *d* = 768, as in the smallest GPT-2, beside what NumPy really holds:

# %%
for name, V in (("bytes", 256), ("code points", len(encodable))):
    table = np.lib.stride_tricks.as_strided(np.float32(0), (V, 768), (0, 0))  # the shape, without the memory
    assert table.nbytes == 4 * V * 768
    print(f"{name:12} V = {V:9,}   {table.nbytes:13,} bytes")
print("really held:", f"{np.zeros((256, 768), np.float32).nbytes:,}")
print("distinct code points in the ten sentences:", len(set("".join(sentences.values()))))

# %% [markdown]
# 3.4 gigabytes, of which these ten sentences would use some two hundred rows, against 0.8 megabytes. And the next
# Unicode version would bring characters that nobody has trained a row for. Bytes have none of these troubles. Any text
# is bytes already:

# %%
for sentence in sentences.values():
    ids = byte_tokenizer.encode(sentence)
    assert ids == list(sentence.encode()) == byte_tokenizer.to_tiktoken().encode(sentence)
print(byte_tokenizer.n_vocab, "tokens write all ten, and tiktoken gives the same ids")

# %% [markdown]
# A sanity number that later chapters need. Before it has learned anything, a model gives each of 256 bytes the same
# chance, 1/256. Its *loss* is what that chance costs for each byte that comes, in natural logarithms: ln 256. Merely
# knowing how often each byte occurs is already better.

# %%
all_bytes = np.frombuffer("".join(sentences.values()).encode(), np.uint8)  # (bytes,)
chance = np.bincount(all_bytes, minlength=256) / len(all_bytes)  # (256,)
print(f"all alike: {-np.log(np.full(256, 1 / 256))[all_bytes].mean():.3f} = ln 256 = {np.log(256):.3f}")
print(f"by how often each occurs: {-np.log(chance[all_bytes]).mean():.3f}")

# %% [markdown]
# Some bytes never occur in UTF-8 at all. Ask every code point there is:

# %%
used = set(b"".join(map(utf8_by_hand, encodable)))
print("never used:", " ".join(f"{byte:02X}" for byte in range(256) if byte not in used))

# %% [markdown]
# C0 and C1 could only begin a character that fits into one byte, F5 and above only one beyond U+10FFFF. Where the
# bytes of the ten sentences lie shows the structure once more: ASCII on the left, bytes that continue a character in
# the middle, first bytes on the right.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
axes.bar(range(256), chance * len(all_bytes), width=1, color="black")
for edge, name in ((0, "ASCII: 0xxxxxxx"), (128, "continues: 10xxxxxx"), (192, "begins: 11…")):
    axes.axvline(edge - 0.5, color="0.6", linestyle="--")
    axes.text(edge + 2, 93, name, fontsize=8)
axes.set(
    xlabel="value of the byte", ylabel="occurrences", title="The bytes of ten sentences", ylim=(0, 100), xlim=(-1, 256)
)
plt.show()

# %% [markdown]
# ## 9. Naive, then fast
#
# How many characters are in these bytes? Count every byte that does not continue one. First as the sentence says it, in
# plain Python:


# %%
def count_naively(data):
    return sum(byte & 0b11000000 != 0b10000000 for byte in data)


print(count_naively("naïve 5 €".encode()), len("naïve 5 €"))

# %% [markdown]
# Then the same with all bytes in one step each: as an array, and with `translate`, which deletes the continuing bytes
# in C so that their number need only be read off.


# %%
def count_with_numpy(data):
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) & 0xC0 != 0x80))


def count_with_translate(data, continuing=bytes(range(0x80, 0xC0))):
    return len(data.translate(None, delete=continuing))


# %% [markdown]
# Equal first, fast second. Four ways, the fourth being Python's decoder:

# %%
some_bytes = "".join(sentences.values()).encode()
ways = {
    "plain Python": count_naively,
    "NumPy": count_with_numpy,
    "translate": count_with_translate,
    "decode": lambda data: len(data.decode()),
}
print({name: way(some_bytes) for name, way in ways.items()})
assert len({way(some_bytes) for way in ways.values()}) == 1

# %% [markdown]
# Each looks at every byte once, so the time should be a constant times the number of bytes: the formula is *t = c · n*.
# The times below are from the machine that ran this notebook, and yours will differ.

# %% tags=["volatile"]
from statistics import median
from time import perf_counter


def seconds(way, data, times=5):
    def once():
        start = perf_counter()
        way(data)
        return perf_counter() - start

    return median(once() for _ in range(times))


repeats = (10, 40, 160, 640)
took = {name: [seconds(way, some_bytes * n) for n in repeats] for name, way in ways.items()}
for name, t in took.items():
    print(f"{name:13}{t[-1] * 1000:8.2f} ms   {took['plain Python'][-1] / t[-1]:6.1f} times as fast as plain Python")

# %% [markdown]
# With both axes in powers, *t = c · n* is a line of slope 1, and *c* is how high it lies. The grey line has exactly
# that slope. Where a line bends at its left end, the fixed cost of one call weighs more than the bytes.

# %% tags=["volatile"]
megabytes = np.array(repeats) * len(some_bytes) / 1e6
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, t), style in zip(took.items(), ("ko-", "ks--", "k^:", "kd-."), strict=True):
    axes.loglog(megabytes, np.array(t) * 1000, style, markersize=4, label=name)
axes.loglog(megabytes, took["plain Python"][-1] * 1000 * megabytes / megabytes[-1], color="0.7", linewidth=5, zorder=0)
axes.set(xlabel="text (megabytes)", ylabel="time (ms)", title="Counting characters")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The lesson goes far beyond counting: one call for many numbers, not many calls for one number each. Notebook 04
# makes the tokenizer fast with little else.
#
# ## 10. Exercises
#
# Write your function in place of the dots, run the cell, and read what the check says. It names the likely mistake.
#
# ### Exercise 1 · `count_characters` (easy, 5 minutes)
#
# How many code points do these UTF-8 bytes hold? Do not decode them.

# %%
from working_with_text_data.exercises.ex01 import attempt, check_count_characters


def count_characters(data): ...


attempt(check_count_characters, count_characters)

# %% [markdown]
# <details><summary>Solution: `count_characters`</summary>
#
# ```python
# def count_characters(data):
#     return sum(byte & 0b11000000 != 0b10000000 for byte in data)
# ```
# </details>
#
# ### Exercise 2 · `decode_one` (medium, 15 minutes)
#
# The way back. `data` begins with a character, and more may follow. Return its code point and how many bytes it took,
# as in `decode_one("é!".encode()) == (0xE9, 2)`. The bytes are right UTF-8; use only arithmetic, no `decode`.

# %%
from working_with_text_data.exercises.ex01 import check_decode_one


def decode_one(data): ...


attempt(check_decode_one, decode_one)

# %% [markdown]
# <details><summary>Solution: `decode_one`</summary>
#
# ```python
# def decode_one(data):
#     first = data[0]
#     if first < 0x80:
#         return first, 1
#     length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
#     code = first & (0x7F >> length)  # without the marks
#     for byte in data[1:length]:
#         code = code << 6 | byte & 0x3F
#     return code, length
# ```
# </details>
#
# ### Exercise 3 · `mend_mojibake` (medium, 10 minutes)
#
# Return the text as it was before somebody read its UTF-8 as cp1252. A text to which that did not happen must come back
# as it is.

# %%
from working_with_text_data.exercises.ex01 import check_mend_mojibake


def mend_mojibake(text): ...


attempt(check_mend_mojibake, mend_mojibake)

# %% [markdown]
# <details><summary>Solution: `mend_mojibake`</summary>
#
# ```python
# def mend_mojibake(text):
#     try:
#         return text.encode("cp1252").decode("utf-8")
#     except UnicodeError:  # not a text that was broken in this way
#         return text
# ```
# </details>
#
# ### Exercise 4 · `cut_to_bytes` (medium, 10 minutes)
#
# A database column holds `limit` bytes. Return the UTF-8 of as many whole characters from the start of `text` as fit.

# %%
from working_with_text_data.exercises.ex01 import check_cut_to_bytes


def cut_to_bytes(text, limit): ...


attempt(check_cut_to_bytes, cut_to_bytes)

# %% [markdown]
# <details><summary>Solution: `cut_to_bytes`</summary>
#
# ```python
# def cut_to_bytes(text, limit):
#     data = text.encode()
#     if limit >= len(data):
#         return data
#     while limit and data[limit] & 0xC0 == 0x80:  # the first byte left out continues a character: go back
#         limit -= 1
#     return data[:limit]
# ```
# </details>
#
# ### Exercise 5 · `same_text` (easy, 5 minutes)
#
# Are two texts the same but for how their accents are spelled? x² and x2 are not the same text.

# %%
from working_with_text_data.exercises.ex01 import check_same_text


def same_text(a, b): ...


attempt(check_same_text, same_text)

# %% [markdown]
# <details><summary>Solution: `same_text`</summary>
#
# ```python
# from unicodedata import normalize
#
#
# def same_text(a, b):
#     return normalize("NFC", a) == normalize("NFC", b)
# ```
# </details>
#
# ## 11. In the project's source
#
# Two short functions of this repository do what you have read. Both are worth opening in an editor, with what stands
# around them. `bytepair_enc/ladder.py` begins where this notebook ends:

# %%
import inspect

from working_with_text_data.bytepair_enc.ladder import text_to_ids

print(inspect.getsource(text_to_ids))
for sentence in sentences.values():
    assert text_to_ids(sentence) == [byte for character in sentence for byte in utf8_by_hand(ord(character))]

# %% [markdown]
# And `bytepair_enc/streaming.py` has the decoder of section 7. Its first lines say why text is held back as well as
# bytes, and `finish` what happens to ids that end in the middle of a character.

# %%
print(inspect.getsource(StreamDecoder.feed))
print(inspect.getsource(StreamDecoder.finish))

# %% [markdown]
# `text_files.py` reads files of which nobody knows the encoding: the byte order mark of section 5, then UTF-8, which
# hardly anything else happens to be, then the old tables. Read its first docstring, then `_decode`.

# %%
from working_with_text_data.text_files import decode_text

for contents in (file_contents, original.encode("utf-8"), original.encode("cp1252")):
    print(decode_text(contents))

# %% [markdown]
# Where to read on: `tokenizer_json.py` for a file format that writes the 256 bytes as 256 printable characters,
# `unicode_pin.py` for what it means that Unicode grows.
#
# ## 12. What to keep
#
# - A character is a number, its code point. UTF-8 writes it as one to four bytes, and every byte says which part it is.
# - "Length" has four meanings: what a reader counts, code points, UTF-16 units, bytes.
# - 256 bytes are a vocabulary that can write every text there is, and the text comes back exactly.
# - It costs steps: 1.00 byte a character in the English sentence, 2.68 in the Hindi one, 3.00 in Japanese and Chinese.
#
# **Pitfalls**
#
# - Reading without saying how. Write `open(path, encoding="utf-8")`, always.
# - Repairing with `errors="ignore"` or `"replace"`: what is lost stays lost.
# - Cutting bytes, or lists of byte-level tokens, and decoding each part by itself.
# - Comparing texts from two sources without a normal form; normalising a text that has to come back.
# - NFKC on anything but a search index.
#
# **On other machines.** Nothing here touches a GPU, so CUDA and Apple's MPS make no difference. Windows does: up to
# Python 3.14, `open(path)` without an encoding takes the system's table, often cp1252, which is the bug of section 6.
# Python 3.15 makes UTF-8 the default (PEP 686). Windows also ends lines with `\r\n`, two bytes where others have one.
#
# **The next question.** Bytes can write everything, and take many steps to say little. "The" is three of them, and it
# comes up all the time. Could a machine find out by itself which bytes belong together? *How do 256 bytes become
# words?* Notebook 02 answers that.
