"""Names of people where something announces them: an introduction, a greeting, a title, a signature.

A name that nothing announces ("what should Anna do?") stays, unless the same text announces it elsewhere. Names of
the famous and of characters go too where they have a title: removal cannot tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_U = "A-ZÀ-ÖØ-ÞŁŚŻČŠŽ"
_N = rf"[{_U}](?:[a-zß-öø-ÿąćęłńóśźżčšžœ]|(?<=[a-z'-])[{_U}](?=[a-zß-ÿ])|['-](?=[{_U}]))+|[{_U}]'[{_U}][a-zà-ÿ]+"
_PARTICLE = r"(?:von|van|der|den|de|del|la|le|di|da|dos|du|zu|zur|bin|ibn|al|el|y|ten|ter|Mc|Mac|St\.)"
_NAME = rf"(?P<name>(?:{_N})(?:(?:[ \t]+{_PARTICLE}){{0,2}}[ \t]+(?:{_N}|[{_U}]\.)){{0,3}})(?![A-Za-zÀ-ÿ])"
_TWO = rf"(?P<name>(?:{_N})(?:(?:[ \t]+{_PARTICLE}){{0,2}}[ \t]+(?:{_N}|[{_U}]\.)){{1,3}})(?![A-Za-zÀ-ÿ])"
_ANY = r"(?P<name>[a-zß-ÿ]+(?:['-][a-zß-ÿ]+)?(?:[ \t]+[a-zß-ÿ]+(?:['-][a-zß-ÿ]+)?)?)(?![A-Za-zÀ-ÿ])"

_LINE = r"(?:\A|(?<=[\n,;.(|-])|(?<=[\n,;.(|-] ))"  # where a field of a form begins
_SAYS_NAME = (
    rf"(?<![A-Za-zÀ-ÿ])(?i:my (?:full |first |last |real )?name(?:'s| is|:)"
    rf"|{_LINE}(?:(?:full|first|last|employee|customer|patient|contact|client) )?name ?:"
    r"|i am called|i'm called|they call me"
    r"|(?:ich|er|sie) hei(?:ß|ss)e?t?|mein name (?:ist|lautet)|name ist|je m'appelle|mon nom est"
    r"|je me nomme|me llamo|mi nombre(?: completo)? es"
    rf""
    rf"|{_LINE}(?:nombre|nom) ?:|signed(?: by)?[,:]?|unterschrieben von|signé[,:]?|firmado(?: por)?[,:]?)[ \t]+"
)
_SAYS_WHO = (
    r"(?<![A-Za-zÀ-ÿ])(?i:i am|i'm|this is|it's me,|call me|ich bin|hier (?:ist|spricht)|je suis"
    r"|moi c'est|moi,? c'est|ici|soy|habla)[ \t]+"
)
_PEOPLE = (
    r"(?<![A-Za-zÀ-ÿ])(?i:(?:my|our) (?:\w+ )?(?:husband|wife|partner|son|daughter|brother|sister|mother"
    r"|father|mom|dad|friend|boss|manager|colleague"
    r"|coworker|neighbou?r|landlord|roommate|teacher|doctor|client|cousin|uncle|aunt|boyfriend|girlfriend"
    r"|fianc[ée]e?)"
    r"|meine? (?:\w+ )?(?:mann|frau|sohn|tochter|bruder|schwester|mutter|vater|freund|freundin|chef|chefin"
    r"|kollege|kollegin|nachbar|nachbarin|vermieter)"
    r"|m(?:on|a) (?:mari|femme|fils|fille|frère|sœur|soeur|mère|père|ami|amie|patron|collègue|voisin"
    r"|voisine|copain|copine|chef)"
    r"|mi (?:marido|mujer|esposo|esposa|hijo|hija|hermano|hermana|madre|padre|amigo|amiga|jefe|jefa"
    r"|compañero|compañera|vecino|vecina|novio|novia)),?[ \t]+"
)
_TITLE = (
    r"(?<![A-Za-zÀ-ÿ])(?:Mr|Mrs|Ms|Mx|Miss|Dr|Prof|Professor|Doctor|Sir|Herrn?|Frau|Mme|Mlle|M(?=\.)|Monsieur"
    r"|Madame|Mademoiselle|Maître|Docteur"
    r"|Sra|Sr|Srta|Señora?|Señorita|señora?|señorita|Don|Doña|don|doña|Dra|Doktor|Profesora?|Professeur"
    r"|Dipl\.-Ing)(?:\.[ \t]*|[ \t]+)"
    r"(?:(?:Dr|Prof|Doktor|Professor)\.?[ \t]*)?"
)
_GREETING = (
    r"(?:^|(?<=[\n\"':.!?] )|(?<=[\n\"':]))[ \t]*(?i:dear|hi|hello|hey|liebe[rs]?|hallo"
    r"|sehr geehrte[r]?|chère?|bonjour|salut|querid[oa]|estimad[oa]|hola)[ \t]+"
)
_CLOSING = (
    r"(?<![A-Za-zÀ-ÿ])(?i:(?:(?:kind|best|warm|warmest|many)(?: |est ))?(?:regards|wishes|thanks)"
    r"|sincerely(?: yours)?|yours(?: truly| sincerely| faithfully)?"
    r"|cheers|thank you|thanks|best|love|respectfully|mit (?:freundlichen|besten|lieben|herzlichen) grüßen"
    r"|(?:viele|liebe|beste|herzliche|schöne) grüße|gruß"
    r"|lg|mfg|vg|danke|(?:bien )?cordialement|bien à vous|amicalement|sincères salutations"
    r"|salutations(?: distinguées)?|merci(?: d'avance)?|bises"
    r"|(?:un (?:cordial )?)?saludos?(?: cordiales)?|atentamente|cordialmente|un abrazo|gracias"
    r"|muchas gracias)(?:[,.!][ \t]*\n?|[ \t]*\n|(?i:(?<=grüßen)|(?<=grüße)|(?<=gruß)|(?<=lg)|(?<=mfg)"
    r"|(?<=regards)) )"
    r"[ \t]*[-\u2014]*[ \t]*"
)
_LATIN = [
    re.compile(_SAYS_NAME + _NAME),
    re.compile(_SAYS_NAME + _ANY),
    re.compile(_SAYS_WHO + _TWO),
    re.compile(
        r"(?<![A-Za-zÀ-ÿ])(?i:i am|i'm|it's me,|call me|moi,? c'est|hier (?:ist|spricht)|soy|habla)[ \t]+"
        + _NAME
        + r"(?=[ \t]*(?:[,.;!\n]|and\b|from\b|here\b|y\b|de\b|$))"
    ),
    re.compile(_PEOPLE + _NAME),
    re.compile(_TITLE + _NAME),
    re.compile(_GREETING + _NAME + r"(?=[ \t]*[,:!\n]|$)"),
    re.compile(_CLOSING + _NAME + r"(?=[ \t]*[.!\"']?[ \t]*(?:\n|$))"),
    re.compile(r"\n[ \t]*(?:--+|\u2014)[ \t]*" + _NAME + r"\s*$"),
]
_NEVER = (
    "the a an i not on in at to too so it sir madam hiring team all everyone everybody customer customers"
    " friend friends santa president there he she we you they my your no unknown important confidential"
    " required and but or if what how please can could would ich sie er es und oder aber nicht ein eine der die"
    " das kollegen damen herren kunden freunde student studentin lehrer lehrerin je il elle et ou mais pas un"
    " une le la les tous monsieur madame yo el ella y o pero no un una los las todos equipo clientes english world"
    " chatgpt gpt claude siri alexa assistant ai bot german french spanish chinese american british canadian indian"
    " python java javascript excel january"
    " february march april may june july august september october november december"
)
_NOT_NAMES = frozenset(_NEVER.split())
_STOP_LOWER = re.compile(
    r"\s+(?:and|i|from|but|so|can|could|please|what|is|who|the|a|an|in|at|here|born|my|und|ich|aus|bin"
    r"|wohne|et|je|j|y|de|vivo|soy|tengo|und|von|for|with|or|to)\b.*"
)

_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾"
    "侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文庞樊兰殷施陶洪翟安颜倪严牛温芦季俞章鲁葛伍韦申尤毕聂丛焦向柳邢骆岳齐尚梅莫庄辛管祝左涂谷祁时舒耿牟卜路詹关苗凌费纪靳盛童欧甄项曲成游阳裴"
    "席卫屈鲍覃霍翁隋植甘景薄司柏宁柯阮桂闵柴华车冉"
)
_COMPOUND = "欧阳|上官|司马|诸葛|司徒|东方|独孤|南宫|皇甫|尉迟|公孙|慕容|令狐|夏侯|端木|百里|长孙"
_H = "\u4e00-\u9fff"
_FAMILY = rf"(?:{_COMPOUND}|[{_SURNAMES}])"
# Words that begin with the sign of a family name.
_NO_NAME = (
    "关于|关系|关注|高级|高中|单身|单位|金融|安全|方便|常见|温柔|程序|时间|成为|成功|华人|车间|白领|石油"
    "|阳光|景区|包括|解释|顾问|管理"
    "|万能|项目|计算|强调|应该|全体|易于|从事|司机"
)
_SMALL = "的了是在和有找问给看去到上下个位名这那些与及让请叫被把为"
# Signs that go on with the sentence after a given name of one sign.
_ON = "想请今来在是的从现我住年男女要也和与有很说问了这你您就不已目毕以可会需希帮能，。"
_CHINESE_SAYS = re.compile(
    rf"(?:我叫做?|我名叫|我的(?:全名|名字|姓名)(?:叫做?|是|为)?|名字(?:叫|是)|本人叫?(?![于向从])|姓名(?:叫|是|为)?:?"
    rf"|联系人(?:是|为)?:?|收件人(?:是|为)?:?|署名:?|落款(?:是|为)?:?|签名:?"
    rf"|(?:老公|老婆|丈夫|妻子|儿子|女儿|哥哥|弟弟|姐姐|妹妹|同事|朋友|同学|老板|邻居|男友|女友|客户|经理"
    rf"|房东)(?:名?叫))[ \t]*"
    rf"(?P<name>{_FAMILY}(?:[{_H}](?![{_H}])|[{_H}](?=[{_ON}])|[{_H}]{{2}})|[小阿老][{_H}](?=[,.!?、 ]"
    rf"|[{_ON}]|$)|[A-Z][a-z]+(?: [A-Z][a-z]+)?)"
)
_CHINESE_IS = re.compile(
    rf"(?:我是|这里是|这是|你好,)[ \t]*(?!{_NO_NAME})(?P<name>{_FAMILY}[{_H}]{{1,2}})(?=[,.!?;、。，！ \n]|$)"
)
_CHINESE_TITLE = re.compile(
    rf"(?<![任如为主对关由基属至等最提同])(?!{_NO_NAME})(?P<name>{_FAMILY}(?:(?![{_SMALL}])[{_H}]){{0,2}}?)(?:先生|女士|小姐|老师|医生|教授"
    rf"|经理|律师|同学|总监|师傅|阿姨|叔叔|博士|院长|校长|主任|护士|总(?=[,.!?、。，！ 您好的]|$))"
)
_CHINESE_CLOSING = re.compile(
    rf"(?:此致[ \t\n]*敬礼|敬上|祝好|谢谢(?=[!,.。，！\n])|敬礼|顺祝商祺|祝您?(?:生活|工作)?(?:愉快"
    rf"|顺利))[!,.。，！]*[ \t]*\n?[ \t]*[-\u2014]*[ \t]*(?P<name>{_FAMILY}[{_H}]{{1,2}})[ \t]*(?=\n|$|敬上|\d)"
)
_CHINESE_DEAR = re.compile(rf"(?:亲爱的|尊敬的|致)(?P<name>{_FAMILY}[{_H}]{{1,2}})(?=[,:!，：！])")


def find_names(text: str) -> Iterator[tuple[int, int]]:
    """Announced names, and every other place of them and of their parts in the same text."""
    names = set[str]()
    for form in _LATIN:
        for match in form.finditer(text):
            name = _STOP_LOWER.sub("", match["name"]) if match["name"][0].islower() else match["name"]
            if not {name.split()[0].lower(), name.split()[-1].lower()} & _NOT_NAMES:
                names.add(name)
                yield match.start("name"), match.start("name") + len(name)
    for form in (_CHINESE_SAYS, _CHINESE_TITLE, _CHINESE_CLOSING, _CHINESE_IS, _CHINESE_DEAR):
        for match in form.finditer(text):
            names.add(match["name"])
            yield match.span("name")
    yield from _elsewhere(text, names)


def _elsewhere(text: str, names: set[str]) -> Iterator[tuple[int, int]]:
    parts = {
        part
        for name in names
        for part in (name, *name.split())
        if len(part) > 2 or (part[0] >= "\u4e00" and len(part) > 1)
    }
    known = [part for part in parts if not part[0].islower() and part.lower() not in _NOT_NAMES]
    for part in sorted(known, key=len, reverse=True):
        edge = "" if "\u4e00" <= part[0] <= "\u9fff" else r"(?![A-Za-zÀ-ÿ])"
        for match in re.finditer((r"(?<![A-Za-zÀ-ÿ])" if edge else "") + re.escape(part) + edge, text):
            yield match.span()
