"""What CTranslate2's own Python package makes of words with a small trained model: Arabic letters into Latin ones.

    python oracle/ctranslate2_goldens.py MODEL_FOLDER > translate/tests/goldens/ctranslate2.json

The words were written for this project. Every letter is a token, as the model's vocabulary has them.
"""

import importlib.metadata
import json
import sys

import ctranslate2

WORDS = """آتزمون محمد سلام كتاب مدرسة بيت شمس قمر نهر جبل بحر سماء ارض ماء نار هواء شجرة وردة طائر قطة كلب حصان جمل
اسد نمر فيل سمكة بغداد دمشق بيروت القاهرة تونس الرباط الجزائر عمان الكويت قطر البحرين مسقط صنعاء الخرطوم طرابلس حلب البصرة
الاسكندرية مراكش فاس وهران جدة مكة المدينة يوسف ابراهيم مريم فاطمة خالد سعيد ليلى نور حسن حسين عمر علي زينب ستيفن باراك
واشنطن لندن باريس""".split()


def main():
    translator = ctranslate2.Translator(sys.argv[1], device="cpu")
    goldens = {"ctranslate2": importlib.metadata.version("ctranslate2"), "beams": {}}
    for beams in (1, 2, 5):
        results = translator.translate_batch([list(word) for word in WORDS], beam_size=beams)
        goldens["beams"][str(beams)] = {
            word: "".join(result.hypotheses[0]) for word, result in zip(WORDS, results)
        }
    json.dump(goldens, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
