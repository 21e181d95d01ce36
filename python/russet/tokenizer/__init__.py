"""Text to ids and back.

tokenizer           Tokenizer: encode, decode, apply_chat_template
files               what the files of a model folder say about its tokens
from_json           tokenizer.json, through the tokenizers library
from_sentencepiece  tokenizer.model, through the sentencepiece library
encode_cache        the texts encoded last
detokenizer         ids to text as they come, never half a character
clean_up            the spaces some tokenizers take out of decoded text
chat_template       a conversation as the text a model was trained on
template_sandbox    jinja2 with Hugging Face's extras, for templates of strangers
template_meter      what keeps such a template from running or growing for ever
"""

from russet.tokenizer.chat_template import Message
from russet.tokenizer.detokenizer import Detokenizer
from russet.tokenizer.encode_cache import CacheInfo
from russet.tokenizer.tokenizer import Tokenizer

__all__ = ["CacheInfo", "Detokenizer", "Message", "Tokenizer"]
